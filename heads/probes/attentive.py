"""The attentive probe as a scikit-learn classifier, trained in torch on stored or live patch tokens.

Axes: `B` batch, `T` tokens, `D` width, `K` classes, `N` samples.
"""

from collections.abc import Iterator
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Tags, check_consistent_length, column_or_1d
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional as F

from heads.attentive import FORMS
from heads.probes.base import FLOATS, Probe, Tensors, check_no_label_missing, check_tensor, encode_labels, labelled
from heads.probes.parameters import choice, count, device, flag, positive, seed
from heads.probes.rows import Array
from vitbackbone import progress_bar

HEAD_WIDTH = 64  # the width of an attention head in nearly every Vision Transformer


@no_type_check  # no run-time checks: `fit` refuses wrong arguments itself
class AttentiveProbe(Probe):
    """An attentive probe on the patch tokens of a frozen backbone, trained in torch, as a scikit-learn classifier.

    `form`: `"vjepa"` or `"aim"`. It reads the tokens it is given; AIM itself reads the mean of the last six layers.
    `num_heads`: the number of attention heads, by default one for every 64 of width, as in nearly all Vision
    Transformers.
    `epochs`, `batch_size`, `lr`, `weight_decay`: parameters of AdamW. The learning rate falls from `lr` to 0 by a
    cosine, gradients are clipped to 1, and biases and norms have no weight decay. This is V-JEPA's recipe for images
    (facebookresearch/jepa, evals/image_classification_frozen/eval.py), except that its weight decay falls too.
    `random_state`: the integer seed of initialisation and order. Equal seeds give equal probes on one machine.
    `device`: the device to train and predict on. `progress`: whether to show a progress bar.

    X is a sequence of the (T, D) tokens of each sample, read on demand. T may differ between samples. It may be
    `FeatureStore(...).tokens`, an array or a memory map (N, T, D), or the output of `ImageFeatures(pooling="tokens")`.

    Samples with the label -1, "unknown" in a `FeatureStore`, are left out with a warning.

    Fitted: `module_`, with the same parameters as the head's `classifier`; `loss_`, the mean over the last epoch;
    `classes_`.
    Raises `ValueError` on an unknown form, a number of heads that does not divide D, a single class, and missing or
    continuous labels. The tokens must have the shape above and be finite.
    """

    module_: nn.Module
    loss_: float

    def __init__(
        self,
        form: str = "vjepa",
        num_heads: int | None = None,
        epochs: int = 20,
        batch_size: int = 64,
        lr: float = 1e-3,
        weight_decay: float = 1e-3,
        random_state: int = 0,
        device: str = "cpu",
        progress: bool = True,
    ) -> None:
        self.form = form
        self.num_heads = num_heads
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.random_state = random_state
        self.device = device
        self.progress = progress

    def fit(self, X: Any, y: ArrayLike) -> "AttentiveProbe":
        """Train on N samples of tokens (T, D) and labels (N,)."""
        self._check_parameters()
        device(self, "device")
        whole = _Samples(X)
        check_no_label_missing(y)
        labels = column_or_1d(y, warn=True)
        check_consistent_length(labels, range(len(whole)))
        known = labelled(labels, type(self).__name__)
        samples = _Samples(X, np.flatnonzero(known))
        classes, codes = encode_labels(labels[known])
        if len(classes) < 2:
            raise ValueError(f"AttentiveProbe was given samples of one class, {str(classes[0])!r}; want at least two")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            module = self._build(samples.width, len(classes)).to(self.device).train()
        self.loss_ = self._train(module, samples, torch.from_numpy(codes).to(self.device))
        self.classes_, self.n_features_in_, self.module_ = classes, samples.width, module.eval()
        return self

    def _train(self, module: nn.Module, samples: "_Samples", targets: Tensor) -> float:
        """Train the module in place, and return the mean loss of the last epoch."""
        matrices = [p for p in module.parameters() if p.ndim > 1]
        plain = [p for p in module.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.lr)
        steps = self.epochs * -(-len(samples) // self.batch_size)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        order = np.random.default_rng(self.random_state)
        with progress_bar(shown=self.progress, total=self.epochs * len(samples), unit="sample") as bar:
            for _ in range(self.epochs):
                total = 0.0
                for rows in self._batches(order.permutation(len(samples))):
                    loss = F.cross_entropy(module(*samples.batch(rows, self.device)), targets[rows])
                    if not torch.isfinite(loss):
                        raise ValueError(f"AttentiveProbe: the loss is {loss.item()}; use a lower lr than {self.lr}")
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                    optimizer.step()
                    cosine.step()
                    total += loss.item() * len(rows)
                    bar.update(len(rows))
                    bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        return total / len(samples)

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities (N, K), in the order of `classes_`."""
        return self._logits(X).softmax(dim=1).numpy()

    def predict(self, X: Any) -> Array:
        """Return the predicted labels (N,)."""
        best = self._logits(X).argmax(dim=1).numpy()
        return self.classes_[best]

    def _logits(self, X: Any) -> Tensor:
        check_is_fitted(self)
        samples = _Samples(X)
        if samples.width != self.n_features_in_:
            raise ValueError(f"AttentiveProbe was fitted on tokens of width {self.n_features_in_}, got {samples.width}")
        module = self.module_.to(self.device)
        with torch.inference_mode():
            parts = self._batches(np.arange(len(samples)))
            return torch.cat([module(*samples.batch(rows, self.device)).float().cpu() for rows in parts])

    def _batches(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Split rows into batches of nearly equal size, because batch norm fails on a last batch of one."""
        return iter(np.array_split(rows, -(-len(rows) // self.batch_size)))

    def _build(self, width: int, num_classes: int) -> nn.Module:
        heads = max(1, width // HEAD_WIDTH) if self.num_heads is None else self.num_heads
        return FORMS[self.form](width, num_classes, heads)

    def _check_parameters(self) -> None:
        choice(self, "form", FORMS)
        count(self, "num_heads", optional=True)
        count(self, "epochs")
        count(self, "batch_size")
        positive(self, "lr")
        positive(self, "weight_decay", zero=True)
        seed(self, "random_state")
        flag(self, "progress")

    def _to_tensors(self) -> Tensors:
        tensors = {name: tensor.cpu().numpy() for name, tensor in self.module_.state_dict().items()}
        return {**tensors, "loss": np.array(self.loss_)}

    def _from_tensors(self, tensors: Tensors) -> None:
        loss, last = tensors["loss"], tensors["linear.weight"]
        check_tensor("loss", loss, (), [np.float64])
        for name, tensor in tensors.items():
            check_tensor(name, tensor, tensor.shape, [*FLOATS, np.int64])  # batch norm counts its steps
        if last.ndim != 2 or len(last) != len(self.classes_) or not last.shape[1]:
            raise ValueError(f"{len(self.classes_)} classes, but linear.weight of shape {last.shape}")
        self.module_ = self._build(last.shape[1], len(last)).eval()
        state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items() if name != "loss"}
        try:
            self.module_.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        self.loss_, self.n_features_in_ = float(loss), last.shape[1]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags


class _Samples:
    """The tokens of samples, read on demand."""

    def __init__(self, X: Any, rows: NDArray[np.int64] | None = None) -> None:
        """Select samples by `rows`, by default all. Raises `ValueError` unless `X` is a sequence of (T, D) tokens."""
        self.X = X
        if not hasattr(X, "__getitem__") or not hasattr(X, "__len__") or isinstance(X, str | bytes | dict):
            raise ValueError(f"X is a {type(X).__name__}; want patch tokens, (N, T, D) or a sequence of (T, D)")
        if not len(X):
            raise ValueError("X has no sample; want patch tokens, (N, T, D) or a sequence of (T, D)")
        self.rows = np.arange(len(X)) if rows is None else rows
        first = X[int(self.rows[0])]
        self.width = np.shape(first)[-1] if np.ndim(first) == 2 else 0
        self.read(int(self.rows[0]))

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> Float[np.ndarray, "T D"]:
        """Read the tokens of a sample. Raises `ValueError` on another shape, and on NaN or inf."""
        tokens = np.asarray(self.X[row], dtype=np.float32)
        if tokens.ndim != 2 or tokens.shape[1] != self.width or not tokens.size:
            width = self.width or "D"
            raise ValueError(
                f"the tokens of sample {row} have shape {tokens.shape}; want (T, {width}), one row for each patch, as "
                "in `FeatureStore(...).tokens` and `features.tokens`"
            )
        if not np.isfinite(tokens).all():
            raise ValueError(
                f"the tokens of sample {row} hold NaN or inf; leave the sample out of X and of y, or extract it again "
                "in a higher precision"
            )
        return tokens

    def batch(self, rows: NDArray[np.int64], device: str) -> tuple[Tensor, Tensor]:
        """Return tokens (B, T, D), with zeros after shorter samples, and a mask (B, T) of the real tokens."""
        parts = [self.read(int(self.rows[row])) for row in rows]
        lengths = np.array([len(part) for part in parts])
        tokens = np.zeros((len(parts), lengths.max(), self.width), dtype=np.float32)
        for i, part in enumerate(parts):
            tokens[i, : len(part)] = part
        valid = np.arange(lengths.max()) < lengths[:, None]
        return torch.from_numpy(tokens).to(device), torch.from_numpy(valid).to(device)
