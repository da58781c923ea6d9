"""Clustering of frozen features by k-means, as MIEB measures it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Int

from vitbackbone.evaluation.metrics.intervals import standard_error, wilson
from vitbackbone.evaluation.protocol import Protocol, Score
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.settings import plain, setting
from vitbackbone.evaluation.vectors import VectorFeatures, vectors
from vitbackbone.evaluation.views import CropView

MIEB = "mteb, MIEB image clustering"


@dataclass(frozen=True)
class KMeans:
    """k-means on small batches, with as many clusters as classes."""

    batch: int = setting(500, "samples of a step", MIEB)
    seed: int = setting(42, "of the first centres and of the batches", MIEB, least=0)


@dataclass(frozen=True)
class Agreement:
    """The agreement of clusters and classes."""

    beta: float = setting(1.0, "weight of homogeneity against completeness in the V-measure", "scikit-learn")


def score(run: Run) -> list[Score]:
    """Cluster the test images, and compare the clusters with their classes."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, v_measure_score

    protocol, fit = run.protocol, run.protocol.fit
    test = vectors(run, run.data.test, protocol.view, protocol.features, f"{run.dataset} test")
    count = len(np.unique(test.labels))

    def compute() -> dict[str, np.ndarray]:
        model = MiniBatchKMeans(count, batch_size=fit.batch, n_init="auto", random_state=fit.seed)
        return {"clusters": model.fit(test.array).labels_.astype(np.int64)}

    key = [plain(protocol.view), plain(protocol.features), plain(fit), run.data.test.digest(), test.digest]
    clusters = run.stage("clusters", key, compute)["clusters"]
    measures: dict[str, Callable[..., float]] = {
        "V-measure": partial(v_measure_score, beta=protocol.metric.beta),
        "normalised mutual information": normalized_mutual_info_score,
        "adjusted Rand index": adjusted_rand_score,
    }
    found = []
    for name, measure in measures.items():

        def drawn(rows: Int[np.ndarray, " N"], measure: Callable[..., float] = measure) -> float:
            return 100 * float(measure(test.labels[rows], clusters[rows]))

        value, main = drawn(np.arange(len(test))), name == "V-measure"
        interval = standard_error(value, drawn, len(test), "images")
        found.append(Score(name, value, len(test), interval, main=main, published=name if main else ""))
    names, labels = np.unique(test.labels, return_inverse=True)
    table = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(table, (labels, clusters), 1)
    matched, order = linear_sum_assignment(table, maximize=True)
    right = matched[np.argsort(order)][clusters] == labels
    value = 100 * float(right.mean())
    return [*found, Score("accuracy of matched clusters", value, len(test), wilson(right), main=False)]


VARIANTS = (
    Protocol(
        name="clustering",
        variant="mieb",
        summary="Cluster the test images by k-means, and compare clusters with classes.",
        source=f"{MIEB}, arXiv 2504.10471",
        kind="classification",
        datasets=("cifar10", "imagenet"),
        view=CropView(short=224),
        features=VectorFeatures(),
        fit=KMeans(),
        metric=Agreement(),
        score=score,
        sources={"view.short": "chosen here: MIEB lets each model preprocess its images itself"},
        traps=("The figure depends on the seed: a second seed moves it by about a point on small datasets.",),
    ),
)
