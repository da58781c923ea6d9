"""The text tower: texts to vectors, and to logits with images.

Axes: `B` texts or images, `K` classes, `P` width of the vectors.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.model.text.config import TextConfig
from vitbackbone.model.text.prompts import PROMPT, fill
from vitbackbone.model.text.tokens import TextTokenizer
from vitbackbone.model.text.transformer import TextTransformer

AT_ONCE = 256  # texts in one forward pass


class TextTower(nn.Module):
    """The text tower of an image-text model: texts to vectors in the space of `Features.pooled`.

    `text(["a photo of a cat"])` returns (B, P), one vector a text. The vectors have the length that the model gives
    them, as `Features.pooled` has. Only their direction carries meaning: `logits` and `class_vectors` normalise them;
    normalise them yourself before you compute cosines.
    """

    def __init__(self, transformer: TextTransformer, tokenizer: TextTokenizer, name: str = "text") -> None:
        super().__init__()
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.name = name

    @property
    def config(self) -> TextConfig:
        """The configuration of the transformer."""
        return self.transformer.config

    @property
    def dim(self) -> int:
        """The width P of the vectors."""
        return self.config.out_dim

    def forward(self, texts: str | Sequence[str]) -> Float[Tensor, "B P"]:
        """Return the vector of each text. Raises `ValueError` if there is no text, or if one is not a string."""
        ids, mask = self.tokenizer(texts)
        device = self.transformer.token_embed.weight.device
        batches = zip(ids.split(AT_ONCE), mask.split(AT_ONCE), strict=True)
        return torch.cat([self.transformer(some.to(device), where.to(device)) for some, where in batches])

    def logits(
        self, pooled: Float[Tensor, "B P"], texts: str | Sequence[str] | Float[Tensor, "K _"]
    ) -> Float[Tensor, "B K"]:
        """Return the model's own logits of images and texts: scaled cosines, plus a bias if the model has one.

        `pooled`: `Features.pooled` of the images, from the image tower of the same checkpoint.
        `texts`: the texts, or their vectors.
        Raises `ValueError` if the widths differ, or if the checkpoint holds no scale.
        """
        if not isinstance(pooled, Tensor):
            raise ValueError(
                f"the images are {type(pooled).__name__}; want `features.pooled`, a tensor (B, {self.dim})"
            )
        vectors = texts if isinstance(texts, Tensor) else self(texts)
        if pooled.shape[-1] != vectors.shape[-1]:
            raise ValueError(
                f"the images have vectors of {pooled.shape[-1]} numbers and the texts of {vectors.shape[-1]}; want "
                "`features.pooled` of the image tower that belongs to this text tower"
            )
        return self.transformer.scaled(F.normalize(pooled, dim=-1) @ F.normalize(vectors, dim=-1).T.to(pooled))

    def class_vectors(self, labels: Sequence[str], templates: str | Sequence[str] = PROMPT) -> Float[Tensor, "K P"]:
        """Return a unit vector for each class: the mean of its normalised prompts, normalised again.

        Radford et al. 2021, section 3.1.4. `templates`: one template or several, each with `{}` for the label.
        Raises `ValueError` if there is no label or a wrong template.
        """
        if isinstance(labels, str) or not labels:
            raise ValueError(f"labels={labels!r}; want a list of at least one label")
        prompts = [fill(templates, label) for label in labels]
        each = F.normalize(self([prompt for of_one in prompts for prompt in of_one]), dim=-1)
        return F.normalize(each.unflatten(0, (len(labels), -1)).mean(dim=1), dim=-1)

    def probabilities(self, logits: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Turn logits into probabilities as the model was trained.

        A model with a bias decides for each text alone whether it fits, so its rows do not sum to 1 (SigLIP, Zhai et
        al. 2023). Any other model chooses among the texts.
        """
        return logits.sigmoid() if self.config.logit_bias else logits.softmax(dim=-1)

    def extra_repr(self) -> str:
        """Show the name."""
        return repr(self.name)
