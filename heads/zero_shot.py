"""Zero-shot classification: the classes are texts, and nothing is trained (Radford et al. 2021, section 3.1).

Axes: `N` images, `P` width of the pooled vectors, `K` classes.
"""

from collections import Counter
from collections.abc import Sequence
from os import PathLike
from typing import Any, no_type_check

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from torch import Tensor

from vitbackbone import TextTower, evaluating, load_text


@no_type_check  # no run-time checks: wrong arguments are refused here, in plain words
class ZeroShot(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """A classifier of pooled image vectors by labels alone. It has scikit-learn's methods, and needs no `fit`.

        images = ImageFeatures("hf:openai/clip-vit-base-patch32", pooling="pooled")
        model = make_pipeline(images, ZeroShot("hf:openai/clip-vit-base-patch32", ["cat", "dog"]))
        model.predict(["photo.jpg"])

    `text`: a name as for `load_text`, or a text tower. It must belong to the backbone of the vectors.
    `labels`: the classes, as words that go into the templates.
    `templates`: one template or several, each with `{}` for the label. A class is the mean of its prompts.

    `classes_` are the labels in the order given. The columns of `predict_proba` have this order, too.
    """

    def __init__(
        self,
        text: str | PathLike[str] | TextTower,
        labels: Sequence[str],
        templates: str | Sequence[str] = "a photo of a {}.",
    ) -> None:
        self.text = text
        self.labels = labels
        self.templates = templates

    def fit(self, X: object = None, y: object = None) -> "ZeroShot":
        """Compute the vectors of the classes. Images and their labels are ignored.

        Raises `ValueError` if there is no label, if one is given twice, or if a template is wrong, and the errors of
        `load_text`.
        """
        labels = [self.labels] if isinstance(self.labels, str) else list(self.labels)
        if isinstance(self.labels, str) or not labels:
            raise ValueError(f"ZeroShot was given labels={self.labels!r}; want a list of labels")
        (label, count), *_ = Counter(labels).most_common(1)
        if count > 1:
            raise ValueError(f"ZeroShot was given the label {label!r} twice; want each label once")
        self.tower_ = self.text if isinstance(self.text, TextTower) else load_text(self.text)
        with evaluating(self.tower_):
            self.vectors_ = self.tower_.class_vectors(labels, self.templates)
        self.classes_ = np.array(labels, dtype=object)
        return self

    def decision_function(self, X: ArrayLike | Tensor) -> NDArray[np.float32]:
        """Return the logits (N, K) of pooled vectors (N, P).

        Raises `ValueError` if the vectors have another width than those of the text tower.
        """
        return self._logits(X).cpu().numpy()

    def predict_proba(self, X: ArrayLike | Tensor) -> NDArray[np.float32]:
        """Return the probabilities (N, K) of pooled vectors (N, P). The probabilities of a SigLIP do not sum to 1; see
        `TextTower.probabilities`."""
        logits = self._logits(X)
        return self.tower_.probabilities(logits).cpu().numpy()

    def predict(self, X: ArrayLike | Tensor) -> NDArray[np.object_]:
        """Return the label of each pooled vector, (N,)."""
        best = self._logits(X).argmax(dim=1).cpu().numpy()
        return self.classes_[best]

    def _logits(self, X: ArrayLike | Tensor) -> Tensor:
        if not hasattr(self, "classes_"):
            self.fit()
        pooled = torch.as_tensor(np.asarray(X, dtype=np.float32) if not isinstance(X, Tensor) else X)
        if pooled.ndim != 2:
            raise ValueError(f"X has the shape {tuple(pooled.shape)}; want pooled vectors (N, P), one for each image")
        with torch.inference_mode():
            return self.tower_.logits(pooled.to(self.vectors_), self.vectors_)

    def __sklearn_is_fitted__(self) -> bool:
        return True  # the labels are all it learns from

    def __sklearn_tags__(self) -> Tags:
        tags: Any = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.target_tags.required = False
        return tags
