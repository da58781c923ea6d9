"""Every command and its options."""

import argparse
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vitbackbone.cli.classes import classify
from vitbackbone.cli.extraction import run_export, run_extract, run_verify
from vitbackbone.cli.looking import list_models, print_info, run_demo, show_pictures
from vitbackbone.cli.model import STRONGER
from vitbackbone.cli.output import add_json
from vitbackbone.cli.places import DEVICES, out_folder
from vitbackbone.cli.probing import predict, probe
from vitbackbone.cli.usage import Parser

if TYPE_CHECKING:
    from vitbackbone.store import Slice

IMAGES = "files, and folders, quoted globs, lists and archives as for `extract`"
Run = Callable[[argparse.Namespace], int]
Command = Callable[..., Parser]  # name, what runs it, what it does, examples


def parser() -> Parser:
    """Return the parser of the whole command, with a parser for each of its commands."""
    whole = Parser(
        prog="vitbackbone", description="Features out of Vision Transformers.", examples=["vitbackbone demo"]
    )
    whole.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    _loudness(whole, default=False)
    added = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    whole.commands = added.choices

    def command(name: str, run: Run, help: str, *examples: str) -> Parser:
        parser = added.add_parser(name, help=help, description=help, examples=examples)
        parser.set_defaults(run=run)
        _loudness(parser, default=argparse.SUPPRESS)  # what stands before the command counts too
        return parser

    _add_extraction(command)
    _add_probing(command)
    _add_looking(command)
    return whole


def _loudness(parser: Parser, default: Any) -> None:
    group = parser.add_mutually_exclusive_group()
    text = "print results and errors only: no progress, no notes"
    group.add_argument("-q", "--quiet", action="store_true", default=default, help=text)
    text = "print more notes, and the traceback of an error"
    group.add_argument("-v", "--verbose", action="store_true", default=default, help=text)


class _Version(argparse.Action):
    """Print the version, which takes an import of the package."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from vitbackbone import __version__

        print(f"vitbackbone {__version__}")
        parser.exit()


def _add_extraction(command: Command) -> None:
    p = command(
        "extract",
        run_extract,
        "Write the features of images into a store. Run again, it does what is missing, damaged, new or changed.",
        f"vitbackbone extract photos/ --model {STRONGER} --out features/ --tokens cls,patches",
        "vitbackbone extract 'shards/*.tar' --out features/ --workers 4",
        "vitbackbone extract photos/ --out features/ --slice 0/3",
        "vitbackbone extract photos/ --out features/ --cluster ray --ray-address auto --ray-gpus 1",
    )
    what = "a folder (sub-folders are labels), a quoted glob, a list with columns path[,label], or .tar/.zip/.parquet"
    p.add_argument("source", metavar="SOURCE", help=what)
    _model(p)
    p.add_argument("--out", type=out_folder, required=True, metavar="DIR", help="the store; FeatureStore(DIR) reads it")

    group = p.add_argument_group("what is stored")
    group.add_argument("--tokens", type=_words, default="cls", metavar="KINDS", help="of cls,patches,registers")
    group.add_argument("--layers", type=_numbers, default="-1", metavar="N,N", help="blocks, negative from the end")
    _resolution(group)
    group.add_argument("--keep-aspect", action="store_true", help="keep the whole photo and its aspect, crop nothing")
    text = (
        "exact; fast, within 1/255 (seldom 2) of it; or draft, which decodes JPEGs at a lower scale and differs visibly"
    )
    group.add_argument("--decoding", default="exact", choices=["exact", "fast", "draft"], help=text)
    _max_pixels(group)
    precisions = ["float32", "float16", "bfloat16"]
    group.add_argument("--dtype", default="float32", choices=precisions, help="of the stored features")
    text = "images to a file (default: 1000, or what makes 256 MiB)"
    group.add_argument("--shard-size", type=int, metavar="N", help=text)

    group = p.add_argument_group("how it runs")
    group.add_argument("--batch-size", type=int, default=32, metavar="N", help="images to a forward")
    text = "processes that read images; 0 reads in this one"
    group.add_argument("--workers", type=int, default=0, metavar="N", help=text)
    group.add_argument("--device", default="cpu", help=f"such as {DEVICES}")
    text = "compute slice I of N, from 0, while other runs compute the rest, such as $SLURM_ARRAY_TASK_ID/8"
    group.add_argument("--slice", type=_slice, default="0/1", metavar="I/N", help=text)
    group.add_argument("--retry-failed", action="store_true", help="read the failed images again")

    group = p.add_argument_group("what computes")
    text = "lowest precision allowed; a higher one is used where it is faster. fp32 equals float32 to 1e-5"
    group.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "int8"], help=text)
    text = "auto takes the faster of native (PyTorch) and openvino"
    group.add_argument("--engine", default="auto", choices=["auto", "native", "openvino"], help=text)
    group.add_argument("--cluster", choices=["ray"], help="compute the shards on a Ray cluster")
    text = "address of the cluster: auto, or ray://HEAD:10001 (default: a new cluster on this machine)"
    group.add_argument("--ray-address", metavar="ADDRESS", help=text)
    group.add_argument("--ray-actors", type=int, metavar="N", help="number of actors (default: 1 to 64, as fit)")
    group.add_argument("--ray-cpus", type=float, metavar="N", help="CPUs reserved for each actor (default: 1)")
    group.add_argument("--ray-gpus", type=float, metavar="N", help="GPUs reserved for each; give --device cuda too")

    p = command(
        "verify",
        run_verify,
        "Read a store and compare it with what was written. Exit code 1 if anything is not as it was.",
        "vitbackbone verify features/",
        "vitbackbone verify features/ --json",
    )
    p.add_argument("store", metavar="STORE", help="what `vitbackbone extract` wrote")
    add_json(p)

    p = command(
        "export",
        run_export,
        "Write a store as other programs read it: npy (clip-retrieval), parquet (pandas, polars) or csv.",
        "vitbackbone export features/ --format npy",
        "vitbackbone export features/ --format parquet --out table/",
    )
    p.add_argument("store", metavar="STORE", help="what `vitbackbone extract` wrote")
    text = "npy: img_emb/ and metadata/; parquet and csv: a table with a row for each image"
    p.add_argument("--format", required=True, choices=["npy", "parquet", "csv"], help=text)
    p.add_argument("--out", type=out_folder, metavar="DIR", help="folder for the files (default: STORE/export-FORMAT)")


def _add_probing(command: Command) -> None:
    p = command(
        "probe",
        probe,
        "Fit a classifier on the features of a store, print how good it is, and save it.",
        "vitbackbone probe features/train --test features/test --probe linear",
        "vitbackbone probe features/ --groups photos.csv:animal",
    )
    p.add_argument("store", metavar="STORE", help="what `vitbackbone extract` wrote, with labels")
    p.add_argument("--test", metavar="STORE", help="measure on it; without one, on a fifth of the first, held out")
    probes = "logistic regression, neighbours, or attention to patches, which the store must have"
    p.add_argument("--probe", choices=["linear", "knn", "attentive"], default="linear", help=probes)
    p.add_argument("--preset", choices=["clip", "dinov2"], default="clip", help="of linear: one C, or a sweep of 45")
    p.add_argument("--k", type=int, default=20, metavar="N", help="of knn: how many neighbours vote")
    p.add_argument("--form", choices=["vjepa", "aim"], default="vjepa", help="of attentive: whose")
    text = (
        "keep photos of a group on one side of the split, as copies always are: LIST.csv:COLUMN, a list with columns "
        "path and COLUMN, or the level of a folder in the photos' paths (0 is the first, -1 the last)"
    )
    p.add_argument("--groups", metavar="BY", help=text)
    text = "where the photos lie, for the picture of those misclassified (default: looked for near the store)"
    p.add_argument("--photos", metavar="DIR", help=text)
    p.add_argument("--out", type=out_folder, metavar="DIR", help="where to save the probe (default: STORE/probe-KIND)")
    add_json(p)

    p = command(
        "predict",
        predict,
        "Classify images with a saved probe: the three likeliest classes of each, with probabilities.",
        "vitbackbone predict cat.jpg photos/ --probe features/train/probe-linear",
    )
    p.add_argument("images", nargs="+", metavar="IMAGE", help=IMAGES)
    p.add_argument("--probe", required=True, metavar="DIR", help="what `vitbackbone probe` saved")
    p.add_argument("--model", metavar="NAME", help="if the backbone lies elsewhere than when the probe was fitted")
    p.add_argument("--weights", metavar="FILE", help="its weights, if they were given by hand")
    _max_pixels(p)
    add_json(p)

    p = command(
        "classify",
        classify,
        "Classify images with a checkpoint's own classifier: the likeliest classes of each, with probabilities.",
        "vitbackbone classify cat.jpg --model hf:google/vit-base-patch16-224",
    )
    p.add_argument("images", nargs="+", metavar="IMAGE", help=IMAGES)
    p.add_argument("--model", required=True, metavar="NAME", help="one with a classifier, named as for `extract`")
    p.add_argument("--weights", metavar="FILE", help="weights downloaded by hand")
    p.add_argument("--top", type=int, default=5, metavar="N", help="how many classes to print of each image")
    _max_pixels(p)
    add_json(p)
    p.add_argument("--device", default="cpu", help=f"such as {DEVICES}")


def _add_looking(command: Command) -> None:
    p = command(
        "show",
        show_pictures,
        "Write pictures of what a backbone sees: attention per head, rollout, PCA of the patches.",
        "vitbackbone show photo.jpg --resolution 128 --out pictures/",
    )
    p.add_argument("image", metavar="IMAGE", help="a file")
    _model(p)
    p.add_argument("--out", type=out_folder, required=True, metavar="DIR", help="folder for the pictures")
    _resolution(p)
    p.add_argument("--layer", type=int, default=-1, metavar="N", help="a block, negative from the end")
    _max_pixels(p)

    p = command("demo", run_demo, "The whole job on sample photos and digits, offline.", "vitbackbone demo --out demo")
    p.add_argument("--out", type=out_folder, default="demo", metavar="DIR", help="folder for pictures and features")

    p = command("models", list_models, "List the backbones known by name.", "vitbackbone models '*dinov2*'")
    p.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="a shell pattern")
    add_json(p)

    p = command(
        "info",
        print_info,
        "Tokens, parameters, compute and memory of a backbone, and how they grow; or its forward step by step.",
        "vitbackbone info vit_base_patch16_224.augreg_in21k --resolution 384",
    )
    p.add_argument("name", metavar="NAME", help="of `vitbackbone models`, hf:OWNER/REPO, a folder")
    _resolution(p)
    p.add_argument("--trace", action="store_true", help="print the tensor at every step of the forward")
    add_json(p)


def _model(to: argparse.ArgumentParser) -> None:
    to.add_argument("--model", default="nano", metavar="NAME", help="of `vitbackbone models`, hf:OWNER/REPO, a folder")
    to.add_argument("--weights", metavar="FILE", help="weights downloaded by hand, or 'random'")


def _resolution(parser: argparse._ActionsContainer) -> None:
    text = "input size, a side or HEIGHTxWIDTH (default: the checkpoint's own)"
    parser.add_argument("--resolution", type=_pixels, metavar="PX", help=text)


def _max_pixels(parser: argparse._ActionsContainer) -> None:
    text = (
        "most pixels of a photo; one with more is refused as a decompression bomb (default: Pillow's limit, 89478485)"
    )
    parser.add_argument("--max-pixels", type=_positive, metavar="N", help=text)


def _positive(text: str) -> int:
    if not re.fullmatch(r"[0-9_]*[1-9][0-9_]*", text):
        raise argparse.ArgumentTypeError(f"{text!r}; want a whole number of at least 1")
    return int(text)


def _pixels(text: str) -> int | tuple[int, int]:
    sides = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not sides:
        raise argparse.ArgumentTypeError(f"{text!r}; want a side such as 224, or HEIGHTxWIDTH such as 160x352")
    height, width = sides.groups()
    return (int(height), int(width)) if width else int(height)


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
