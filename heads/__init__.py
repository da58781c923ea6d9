"""Heads: modules that consume the features of a backbone. They import only what `vitbackbone` exports."""

import lazy_loader

# The names are listed in `__init__.pyi`. A module is imported when one of its names is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
