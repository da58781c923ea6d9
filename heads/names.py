"""The heads known by name: where each is. Data only, so that listing them imports none."""

BUILT_IN: dict[str, str] = {
    "aim_probe": "heads.attentive:AimProbe",
    "concat": "heads.classification:ConcatHead",
    "distilled": "heads.classification:DistilledHead",
    "dpt": "heads.dpt:DPT",
    "dpt_depth": "heads.dpt:DPTDepth",
    "eomt": "heads.eomt:EoMT",
    "fpn": "heads.detection:FeaturePyramid",
    "linear": "heads.segmentation:LinearSegmenter",
    "linear_depth": "heads.depth:LinearDepth",
    "mlp": "heads.classification:MlpHead",
    "multilayer": "heads.segmentation:MultiLayerSegmenter",
    "simple_pyramid": "heads.detection:SimpleFeaturePyramid",
    "upernet": "heads.upernet:UPerNet",
    "vjepa_probe": "heads.attentive:VJepaProbe",
}
