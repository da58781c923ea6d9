"""Shape annotations are checked while the tests run, and only then."""

from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  # the hook names it

install_import_hook(["vitbackbone", "heads"], "tests.typecheck.typechecked")

import torch  # noqa: E402  # after the hook, which must come before the first import of the package

torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings
