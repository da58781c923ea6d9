"""Speed of the forward against timm and transformers: the same architecture, one process, interleaved, medians.

    python benchmarks/forward.py                                  # prints the table of the README
    python benchmarks/forward.py --models vit_small_patch16_224.augreg_in21k --batches 1 --rounds 30

Each number is how many times as fast as timm it is: transformers, this package as it is and by each engine of
`optimize`. The machine's own speed drifts, so only ratios within one run count.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
import transformers
from tqdm import tqdm

from vitbackbone import ViTConfig, load_backbone, optimize
from vitbackbone.zoo import ZOO

MODELS = ["vit_tiny_patch16_224.augreg_in21k", "vit_base_patch16_224.augreg_in21k", "vit_small_patch14_dinov2.lvd142m"]


def hugging_face(config: ViTConfig) -> torch.nn.Module:
    """The same network in transformers, by its own defaults."""
    shared = {
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "image_size": config.image_size[0],
        "patch_size": config.patch_size,
    }
    if config.layer_scale:
        return transformers.Dinov2Model(transformers.Dinov2Config(**shared))
    return transformers.ViTModel(
        transformers.ViTConfig(**shared, intermediate_size=config.mlp_dim), add_pooling_layer=False
    )


def medians(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each, taken in turn, after two rounds of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for i in tqdm(range(rounds + 2), leave=False):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            if i >= 2:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], metavar="N")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="counted runs of each contestant")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, timm {timm.__version__}, transformers {transformers.__version__}, ", end="")
    print(f"{torch.get_num_threads()} threads, float32, median of {args.rounds}\n")
    print(
        "| model | image | batch | timm, ms | transformers | ours | ours, native | ours, OpenVINO | native, CLS alone |"
    )
    print("| --- " * 9 + "|")
    for name in args.models:
        config = ZOO[name].config
        peer = timm.create_model(name.split(".")[0], pretrained=False, num_classes=0).eval()
        backbone = load_backbone(name, weights="random")
        native, openvino = (optimize(backbone, engine=engine) for engine in ("native", "openvino"))
        other = hugging_face(config).eval()
        for batch in args.batches:
            x = torch.randn(batch, 3, *config.image_size)
            contestants = {
                "timm": lambda x=x, peer=peer: peer.forward_features(x),
                "transformers": lambda x=x, other=other: other(pixel_values=x),
                "ours": lambda x=x, backbone=backbone: backbone(x),
                "native": lambda x=x, native=native: native(x),
                "openvino": lambda x=x, openvino=openvino: openvino(x),
                "prefix": lambda x=x, native=native: native.forward_prefix(x, [-1]),
            }
            t = medians(contestants, args.rounds)
            ratios = " | ".join(f"{t['timm'] / t[key]:.2f}" for key in list(contestants)[1:])
            print(f"| {name} | {config.image_size[0]} | {batch} | {1000 * t['timm']:.0f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
