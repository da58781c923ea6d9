"""The colour statistics of a backbone, for a library that normalises images itself."""

from vitbackbone import BackboneModule, FusedPreprocess, Preprocess


def mean_and_std(backbone: BackboneModule) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and std of red, green and blue in [0, 1] that a backbone expects.

    A fused backbone takes images normalised for its first member. Raises `ValueError` if the backbone's preprocessing
    has no mean and std.
    """
    preprocess = backbone.preprocess
    if isinstance(preprocess, FusedPreprocess):
        preprocess = preprocess.parts[0]
    if not isinstance(preprocess, Preprocess):
        raise ValueError(
            f"{backbone.spec.name} is preprocessed by a {type(preprocess).__name__}, which has no mean and std; "
            "want a Preprocess"
        )
    return preprocess.mean, preprocess.std
