"""The heads known by name: where each is. Data only, so that listing them imports none."""

BUILT_IN: dict[str, str] = {
    "concat": "heads.classification:ConcatHead",
    "distilled": "heads.classification:DistilledHead",
    "linear": "heads.segmentation:LinearSegmenter",
    "mlp": "heads.classification:MlpHead",
    "multilayer": "heads.segmentation:MultiLayerSegmenter",
}
