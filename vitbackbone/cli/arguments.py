"""Every command and its options."""

import argparse
import re
from collections.abc import Callable
from importlib import import_module
from shutil import get_terminal_size
from textwrap import fill
from typing import TYPE_CHECKING, Any

from vitbackbone import __version__
from vitbackbone.cli.model import STRONGER
from vitbackbone.cli.output import add_json
from vitbackbone.cli.places import DEVICES, out_folder, store_folder
from vitbackbone.cli.usage import Options, Parser

if TYPE_CHECKING:
    from vitbackbone.store import Slice

IMAGES = "image files, folders, quoted globs, lists, archives and videos, as for `extract`"
STORE = "a store that `vitbackbone extract` wrote"
MODEL = "a name from `vitbackbone models`, hf:OWNER/REPO, or a folder"
DEVICE = f"where to compute, such as {DEVICES}"
MAX_SIDE = 65_535  # pixels, the limit of JPEG
NARROWEST = 11  # columns of a help text, as in argparse
NEGATIVE = "negative numbers count from the end"
Command = Callable[..., Parser]  # its name, the function that runs it, a description, and examples


def _add_running(p: argparse.ArgumentParser, workers: str, devices: str) -> Any:
    """Add the options of a run over many images, and return their group.

    `workers`, `devices`: the help of these options.
    """
    group = p.add_argument_group("how it runs")
    group.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="images in one forward pass")
    group.add_argument("--workers", type=_count, default=0, metavar="N", help=workers)
    group.add_argument("--device", default="cpu", help=DEVICE)
    group.add_argument("--devices", type=_devices, metavar="NAMES", help=devices)
    return group


def parser() -> Parser:
    """Return the parser of the whole command, with a parser for each of its commands."""
    whole = Parser(
        prog="vitbackbone",
        description="Extract and use the features of Vision Transformers.",
        examples=["vitbackbone demo", "vitbackbone extract photos/ --out features/", "vitbackbone extract --help"],
    )
    whole.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    _loudness(whole, default=False)
    added = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    whole.commands = added.choices

    def command(name: str, function: str, help: str, *examples: str) -> Parser:
        width = max(get_terminal_size().columns - 2, NARROWEST)
        description = fill(help, width)  # the formatter leaves descriptions as they are
        parser = added.add_parser(name, help=help, description=description, examples=examples)
        parser.set_defaults(run=_function(function))
        _loudness(parser, default=argparse.SUPPRESS)  # an option before the command counts too
        return parser

    _add_extraction(command)
    _add_probing(command)
    _add_evaluation(command)
    _add_looking(command)
    _add_checking(command)
    return whole


def _function(name: str) -> Callable[[argparse.Namespace], int]:
    """Return the function of a command by its name in `commands/`, such as `models.list_models`.

    Its module is imported when it is called, so that --help and a wrong option need not wait for PyTorch.
    """
    module, function = name.split(".")

    def run(arguments: argparse.Namespace) -> int:
        return getattr(import_module(f"vitbackbone.cli.commands.{module}"), function)(arguments)

    return run


def _loudness(parser: Parser, default: Any) -> None:
    group = parser.add_mutually_exclusive_group()
    text = "print only results and errors: no progress, no notes"
    group.add_argument("-q", "--quiet", action="store_true", default=default, help=text)
    text = "print more notes, and the traceback of an error"
    group.add_argument("-v", "--verbose", action="store_true", default=default, help=text)


class _Version(argparse.Action):
    """Print the version. The action of argparse loses an error on standard output."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"vitbackbone {__version__}")
        parser.exit()


def _add_extraction(command: Command) -> None:
    p = command(
        "extract",
        "extract.run_extract",
        "Write the features of images into a store. Run it again to compute what is missing, damaged, new or changed.",
        f"vitbackbone extract photos/ --model {STRONGER} --out features/ --tokens cls,patches",
        "vitbackbone extract 'shards/*.tar' --out features/ --workers 4",
        "vitbackbone extract 's3://photos/shard-{000000..000999}.tar' --out s3://features/dinov2",
        "vitbackbone extract photos/ --out features/ --devices all",
        "vitbackbone extract photos/ --out features/ --slice 0/3",
        "vitbackbone extract photos/ --out features/ --cluster ray --ray-address auto --ray-gpus 1",
    )
    text = (
        "a folder (sub-folders are labels), a quoted glob, a list with columns path or url[,label], or "
        ".tar/.zip/.parquet; each also in a bucket (s3://, gs://, az://); or hf://datasets/OWNER/NAME (default: "
        "compute the shards that another run has planned for this store)"
    )
    p.add_argument("source", metavar="SOURCE", nargs="?", help=text)
    _model(p)
    text = "folder of the store, or its URL in a bucket"
    p.add_argument("--out", type=store_folder, required=True, metavar="DIR", help=text)

    group = p.add_argument_group("what is stored")
    text = "tokens to store: cls, patches, registers, or several separated by commas"
    group.add_argument("--tokens", type=_words, default="cls", metavar="KINDS", help=text)
    group.add_argument("--layers", type=_numbers, default="-1", metavar="N,N", help=f"blocks to store; {NEGATIVE}")
    _resolution(group)
    group.add_argument(
        "--keep-aspect", action="store_true", help="keep the whole photo and its aspect ratio; crop nothing"
    )
    text = (
        "exact: the pixels of Pillow; fast: pixels that differ from exact by at most 1 of 255, rarely by 2; draft: "
        "JPEGs decoded at a lower resolution, which differs visibly; gpu: JPEGs decoded on a GPU, which differs beside "
        "coloured edges"
    )
    group.add_argument("--decoding", default="exact", choices=["exact", "fast", "draft", "gpu"], help=text)
    _max_pixels(group)
    precisions = ["float32", "float16", "bfloat16"]
    group.add_argument("--dtype", default="float32", choices=precisions, help="dtype of the stored features")
    text = "images in one file (default: 1000, or fewer so that a file has at most 256 MiB)"
    group.add_argument("--shard-size", type=_positive, metavar="N", help=text)

    group = p.add_argument_group("which frames of a video are read (default: all)").add_mutually_exclusive_group()
    group.add_argument("--fps", type=float, metavar="F", help="F frames per second of the video")
    group.add_argument("--stride", type=_positive, metavar="N", help="every N-th frame")
    group.add_argument("--keyframes", action="store_true", help="only frames that are decoded without others")

    group = _add_running(
        p,
        "processes that read images; 0 reads them in the main process",
        "all, or devices separated by commas; one process on each device takes the next free shard",
    )
    text = "compute slice I of N, such as 0/8 or $SLURM_ARRAY_TASK_ID/8; other runs compute the other slices"
    group.add_argument("--slice", type=_slice, metavar="I/N", help=text)
    group.add_argument("--retry-failed", action="store_true", help="read the failed images again")
    text = "read URLs of this machine and of private networks, if a list names them"
    group.add_argument("--allow-private-urls", action="store_true", help=text)

    group = p.add_argument_group("what computes")
    text = "lowest precision allowed; a higher one is used where it is faster. fp32 equals float32 to 1e-5"
    group.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "int8"], help=text)
    text = "auto takes the faster of native (PyTorch) and openvino"
    group.add_argument("--engine", default="auto", choices=["auto", "native", "openvino"], help=text)
    group.add_argument("--cluster", choices=["ray"], help="compute the shards on a Ray cluster")
    text = "address of the cluster: auto, or ray://HEAD:10001 (default: a new cluster on this machine)"
    group.add_argument("--ray-address", metavar="ADDRESS", help=text)
    text = "number of actors (default: as many as fit, at most 64)"
    group.add_argument("--ray-actors", type=int, metavar="N", help=text)
    group.add_argument("--ray-cpus", type=float, metavar="N", help="CPUs reserved for each actor (default: 1)")
    group.add_argument("--ray-gpus", type=float, metavar="N", help="GPUs reserved for each actor; needs --device cuda")

    p = command(
        "verify",
        "stores.run_verify",
        "Check a store against the checksums that were written with it. The exit code is 1 if anything is damaged.",
        "vitbackbone verify features/",
        "vitbackbone verify features/ --json",
    )
    p.add_argument("store", metavar="STORE", help=STORE)
    add_json(p)

    p = command(
        "log",
        "stores.run_log",
        "List the snapshots of a store, the latest first. In Python, FeatureStore(STORE, snapshot=N) opens one.",
        "vitbackbone log features/",
        "vitbackbone log features/ --json",
    )
    p.add_argument("store", metavar="STORE", help=STORE)
    add_json(p)

    p = command(
        "prune",
        "stores.run_prune",
        "Remove old snapshots of a store, and the files that no kept snapshot needs.",
        "vitbackbone prune features/",
        "vitbackbone prune features/ --gone",
    )
    p.add_argument("store", metavar="STORE", help=STORE)
    p.add_argument("--keep", type=_positive, default=1, metavar="N", help="snapshots to keep")
    text = "also remove the rows and features of images that are no longer in the source"
    p.add_argument("--gone", action="store_true", help=text)

    p = command(
        "export",
        "stores.run_export",
        "Convert a store for other programs. An older export in the same folder is replaced.",
        "vitbackbone export features/ --format npy",
        "vitbackbone export features/ table/ --format parquet",
    )
    p.add_argument("store", metavar="STORE", help=STORE)
    p.add_argument("place", type=out_folder, nargs="?", metavar="OUT", help="output folder, as --out")
    text = (
        "npy: the layout of clip-retrieval; parquet: tables for pandas, polars, DuckDB; csv; webdataset: .tar files; "
        "zarr, hdf5: arrays; lance: a table for vector search"
    )
    formats = ["npy", "parquet", "csv", "webdataset", "zarr", "hdf5", "lance"]  # `store.FORMATS`
    p.add_argument("--format", required=True, choices=formats, help=text)
    p.add_argument("--out", type=out_folder, metavar="DIR", help="output folder (default: STORE/export-FORMAT)")


def _add_probing(command: Command) -> None:
    p = command(
        "probe",
        "probe.probe",
        "Fit a classifier on the features of a store, measure its accuracy, and save it.",
        "vitbackbone probe features/train --test features/test --probe linear",
        "vitbackbone probe features/ --groups photos.csv:animal",
    )
    p.add_argument("store", metavar="STORE", help=f"{STORE}, with labels")
    p.add_argument("--test", metavar="STORE", help="store to measure on (default: a held-out fifth of the first)")
    text = "linear: logistic regression; knn: nearest neighbours; attentive: attention over stored patches"
    p.add_argument("--probe", choices=["linear", "knn", "attentive"], default="linear", help=text)
    text = "for linear. clip: one strength of regularisation; dinov2: the best of 45"
    p.add_argument("--preset", choices=["clip", "dinov2"], default="clip", help=text)
    p.add_argument("--k", type=_positive, default=20, metavar="N", help="for knn: neighbours that vote")
    p.add_argument("--form", choices=["vjepa", "aim"], default="vjepa", help="for attentive: the architecture")
    text = (
        "keep all photos of a group on the same side of the split. BY is LIST.csv:COLUMN, a list with columns path and "
        "COLUMN, or the level of a folder in the paths (0 is the first, -1 the last). Duplicates always stay together"
    )
    p.add_argument("--groups", metavar="BY", help=text)
    text = "folder of the photos, to draw those that are misclassified (default: search near the store)"
    p.add_argument("--photos", metavar="DIR", help=text)
    p.add_argument("--out", type=out_folder, metavar="DIR", help="where to save the probe (default: STORE/probe-KIND)")
    add_json(p)

    p = command(
        "predict",
        "probe.predict",
        "Classify images with a saved probe. Print the three most likely classes of each, with probabilities.",
        "vitbackbone predict cat.jpg photos/ --probe features/train/probe-linear",
    )
    p.add_argument("images", nargs="+", metavar="IMAGE", help=IMAGES)
    p.add_argument("--probe", required=True, metavar="DIR", help="a folder that `vitbackbone probe` saved")
    p.add_argument("--model", metavar="NAME", help="the backbone, if its folder has moved since the probe was fitted")
    p.add_argument("--weights", metavar="FILE", help="weights of the backbone, if `extract` was given --weights")
    _loading(p)
    _max_pixels(p)
    add_json(p)

    p = command(
        "classify",
        "classify.classify",
        "Classify images with the classifier of a checkpoint, or by labels alone with an image-text model. Print the "
        "most likely classes with probabilities.",
        "vitbackbone classify cat.jpg --model hf:google/vit-base-patch16-224",
        "vitbackbone classify photos/ --model hf:openai/clip-vit-base-patch32 --labels cat,dog",
    )
    p.add_argument("images", nargs="+", metavar="IMAGE", help=IMAGES)
    p.add_argument(
        "--model", required=True, metavar="NAME", help="a checkpoint with a classifier, named as for `extract`"
    )
    p.add_argument("--weights", metavar="FILE", help="weights that you downloaded")
    _loading(p)
    p.add_argument("--top", type=_positive, default=5, metavar="N", help="classes to print for each image")
    _max_pixels(p)
    add_json(p)
    p.add_argument("--device", default="cpu", help=DEVICE)
    group = p.add_argument_group("by labels alone")
    text = "labels separated by commas, or a file with one label on each line; needs a model with a text tower"
    group.add_argument("--labels", metavar="LABELS", help=text)
    text = "sentence around a label, such as 'a photo of a {}.' (the default); give several to average them"
    group.add_argument("--template", action="append", metavar="TEXT", help=text)
    text = "tokenizer of the text tower, if it is not beside the weights"
    group.add_argument("--tokenizer", metavar="PATH", help=text)


def _add_evaluation(command: Command) -> None:
    p = command(
        "evaluate",
        "evaluate.run_evaluate",
        "Compute a backbone's figures by the papers' protocols, with the published figures beside them. A killed run "
        "resumes. The exit code is 1 if an image could not be read, or if `check` finds a difference.",
        f"vitbackbone evaluate knn linear --data imagenet=ImageNet/ --model {STRONGER} --out results/",
        "vitbackbone evaluate list",
        "vitbackbone evaluate describe knn",
        "vitbackbone evaluate check knn --data imagenet=ImageNet/",
        "vitbackbone evaluate report results/",
    )
    text = "protocols to run; or one of: list, describe PROTOCOL, check PROTOCOL, report OUT"
    p.add_argument("what", nargs="+", metavar="PROTOCOL", help=text)
    _model(p)
    text = "a dataset in its official layout; repeat for several. DIR without NAME= is the protocol's first dataset"
    p.add_argument("--data", action="append", metavar="NAME=DIR", help=text)
    text = "folder for results, trained heads and resumable state; several runs may share it"
    p.add_argument("--out", type=out_folder, metavar="DIR", help=text)
    text = "the paper whose settings are used, such as v2 for DINOv2 (default: the first that `list` shows)"
    p.add_argument("--variant", metavar="NAME", help=text)
    text = "change a setting that `describe` shows, such as fit.ks=10,20; repeat for several"
    p.add_argument("--set", action="append", metavar="KEY=VALUE", help=text)
    text = "try a command on at most N images of each part of a dataset, with fewer training steps"
    p.add_argument("--limit", type=_positive, metavar="N", help=text)
    _add_running(
        p,
        "processes or threads that read images for each device; 0 reads images between forward passes",
        "all, or devices separated by commas, which share the images; heads are trained on --device",
    )
    add_json(p)


def _add_looking(command: Command) -> None:
    p = command(
        "show",
        "show.show_pictures",
        "Draw what a backbone sees: attention of each head, attention rollout, PCA of the patches.",
        "vitbackbone show photo.jpg --resolution 128 --out pictures/",
    )
    p.add_argument("image", metavar="IMAGE", help="a photo")
    _model(p)
    p.add_argument("--out", type=out_folder, required=True, metavar="DIR", help="output folder")
    _resolution(p)
    p.add_argument("--layer", type=int, default=-1, metavar="N", help=f"block to draw; {NEGATIVE}")
    _max_pixels(p)

    p = command(
        "demo",
        "demo.run_demo",
        "Try everything on sample photos and digits, offline.",
        "vitbackbone demo --out demo",
    )
    p.add_argument("--out", type=out_folder, default="demo", metavar="DIR", help="output folder")

    p = command("models", "models.list_models", "List the backbones known by name.", "vitbackbone models '*dinov2*'")
    p.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="a shell pattern, in quotes")
    add_json(p)

    p = command(
        "info",
        "models.print_info",
        "Print tokens, parameters, compute and memory of a backbone, or its forward pass step by step.",
        "vitbackbone info vit_base_patch16_224.augreg_in21k --resolution 384",
    )
    p.add_argument("name", metavar="NAME", help=MODEL)
    text = "vision tower to describe, if there are several: the object in config.json that holds its settings"
    p.add_argument("--tower", metavar="NAME", help=text)
    _resolution(p)
    p.add_argument("--trace", action="store_true", help="print the tensor after every step of the forward pass")
    add_json(p)


def _add_checking(command: Command) -> None:
    p = command(
        "check",
        "check.run_check",
        "Compare a backbone with the library that its weights come from, timm or transformers, on two sample photos. "
        "The exit code is 1 if they differ.",
        "vitbackbone check vit_small_patch14_dinov2.lvd142m",
        "vitbackbone check vit_small_patch16_224.augreg_in21k --random",
    )
    p.add_argument("name", metavar="NAME", help=MODEL)
    group = p.add_mutually_exclusive_group()
    group.add_argument("--weights", metavar="FILE", help="weights that you downloaded, instead of the published ones")
    text = "compare with every parameter random; needs no network"
    group.add_argument("--random", action="store_true", help=text)
    _resolution(p)
    add_json(p)


def _model(to: Options) -> None:
    to.add_argument("--model", default="nano", metavar="NAME", help=MODEL)
    to.add_argument("--weights", metavar="FILE", help="weights that you downloaded, or 'random'")
    _loading(to)


def _loading(to: Options) -> None:
    """Add the options that say which network of a checkpoint is loaded, and at which native size."""
    text = "native size of the backbone: one side, or HEIGHTxWIDTH (default: the checkpoint's own)"
    to.add_argument("--image-size", type=_pixels, metavar="PX", help=text)
    text = "vision tower to load, if there are several: the prefix of its keys, such as encoder.image_encoder"
    to.add_argument("--tower", metavar="NAME", help=text)
    text = "network to load from a training checkpoint, such as student (default: an averaged copy, if there is one)"
    to.add_argument("--part", metavar="NAME", help=text)


def _resolution(parser: Options) -> None:
    text = "input size: one side, or HEIGHTxWIDTH (default: the checkpoint's own)"
    parser.add_argument("--resolution", type=_pixels, metavar="PX", help=text)


def _max_pixels(parser: Options) -> None:
    text = "refuse photos of more than N pixels, which may be decompression bombs (default: 89478485)"
    parser.add_argument("--max-pixels", type=_positive, metavar="N", help=text)


def _count(text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r}; want a whole number of at least 0")
    return int(text)


def _positive(text: str) -> int:
    if not re.fullmatch(r"\d+(_\d+)*", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; want a whole number of at least 1")
    return int(text)


def _pixels(text: str) -> int | tuple[int, int]:
    sides = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not sides:
        raise argparse.ArgumentTypeError(f"{text!r}; want a side such as 224, or HEIGHTxWIDTH such as 160x352")
    height, width = (int(side or 0) for side in sides.groups())
    if max(height, width) > MAX_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r}; want at most {MAX_SIDE} pixels a side")
    return (height, width) if width else height


def _devices(text: str) -> str | list[str]:
    return text if text == "all" else _words(text)


def _slice(text: str) -> "Slice":
    from vitbackbone.store import Slice

    try:
        return Slice.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _numbers(text: str) -> list[int]:
    if not re.fullmatch(r"-?\d+(,-?\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r}; want numbers such as -1 or 2,5,8,11")
    return [int(word) for word in text.split(",")]
