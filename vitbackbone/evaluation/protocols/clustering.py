"""Clustering of frozen features by k-means, as MIEB measures it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from vitbackbone.evaluation.metrics.intervals import BOOTSTRAP, bootstrap
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
    from sklearn.metrics import adjusted_rand_score, confusion_matrix, normalized_mutual_info_score, v_measure_score

    protocol, fit = run.protocol, run.protocol.fit
    test = vectors(run, run.data.test, protocol.view, protocol.features, f"{run.dataset} test")
    count = len(np.unique(test.labels))

    def compute() -> dict[str, np.ndarray]:
        model = MiniBatchKMeans(count, batch_size=fit.batch, n_init="auto", random_state=fit.seed)
        return {"clusters": model.fit(test.array).labels_.astype(np.int64)}

    key = [plain(protocol.view), plain(protocol.features), plain(fit), run.data.test.digest(), test.digest]
    clusters = run.stage("clusters", key, compute)["clusters"]
    v_measure = 100 * float(v_measure_score(test.labels, clusters, beta=protocol.metric.beta))
    mutual = 100 * float(normalized_mutual_info_score(test.labels, clusters))
    rand = 100 * float(adjusted_rand_score(test.labels, clusters))
    table = confusion_matrix(test.labels, clusters)
    matched = 100 * float(table[linear_sum_assignment(table, maximize=True)].sum()) / len(test)

    def drawn(rows: Int[np.ndarray, " N"]) -> float:
        return 100 * float(v_measure_score(test.labels[rows], clusters[rows], beta=protocol.metric.beta))

    interval = bootstrap(drawn, len(test))
    return [
        Score("V-measure", v_measure, len(test), interval=interval, method=BOOTSTRAP, published="V-measure"),
        Score("normalised mutual information", mutual, len(test), main=False),
        Score("adjusted Rand index", rand, len(test), main=False),
        Score("accuracy of matched clusters", matched, len(test), main=False),
    ]


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
