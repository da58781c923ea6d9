"""The colours that a backbone was trained on, for a library that normalises images itself."""

from vitbackbone import BackboneModule, FusedPreprocess, Preprocess


def mean_and_std(backbone: BackboneModule) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of red, green and blue in [0, 1]. A fused backbone takes images as its first member wants them.

    Raises `ValueError` on a backbone whose preprocessing names none.
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
