"""The base of networks that stand behind another backbone and read its features.

Axes: `B` batch.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vitbackbone.contract import (
    Asked,
    BackboneModule,
    BackboneSpec,
    Features,
    Images,
    Wanted,
    any_size,
    check_images,
    describe_settings,
    one_by_one,
)


class BackboneBehind(BackboneModule):
    """A backbone behind another one, `backbone`, whose channels and preprocessing it takes.

    It has no attention of its own. A subclass makes its layers and defines `_run`. The base joins the settings of both
    networks in `spec.settings`.
    """

    def __init__(self, backbone: BackboneModule, config: object, spec: BackboneSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.spec = replace(spec, settings=f"{backbone.spec.settings}, {describe_settings(config)}")
        self.preprocess, self.channels = backbone.preprocess, backbone.channels

    def forward(self, images: Images, asked: Asked | None = None) -> Any:
        """See `BackboneModule`. The images of a list run one by one."""
        asked = asked or self.last
        check_images(images, self.channels)
        if asked.part == "attention":
            raise ValueError(f"{self.spec.name} has no attention of its own; call its `backbone.attention`")
        with any_size():
            return asked.answer(one_by_one(partial(self._run, wanted=set(asked.wanted)), images))

    @abstractmethod
    def _run(self, images: Float[Tensor, "B C H W"], wanted: set[Wanted]) -> Mapping[Wanted, Features]:
        """Return at least the wanted layers of a batch."""
