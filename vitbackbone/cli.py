"""The `vitbackbone` command: the one place where backbone, extraction, heads and pictures are put together."""

import argparse
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from vitbackbone.extract import FeatureStore
    from vitbackbone.features import BackboneModule
    from vitbackbone.load import Checkpoint

STRONGER = "vit_small_patch14_dinov2.lvd142m"
HOLD_OUT = 0.2  # of a store that is probed without a test store


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 1 where nothing could be read, 2 for wrong input, 130 for Ctrl-C and
    141 where the reader of the output is gone."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own last flush would complain
        return 128 + signal.SIGPIPE
    except (ValueError, OSError, ImportError) as error:
        print(f"vitbackbone {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is done is kept", file=sys.stderr)
        return 130


# ---- commands -----------------------------------------------------------------------------------------------------


def _extract(args: argparse.Namespace) -> int:
    from vitbackbone.extract import extract

    store = extract(
        _load(args),
        args.source,
        args.out,
        tokens=args.tokens,
        layers=args.layers,
        batch_size=args.batch_size,
        shard_size=args.shard_size,
        resolution=args.resolution,
        keep_aspect=args.keep_aspect,
        dtype=args.dtype,
        workers=args.workers,
        device=args.device,
    )
    print(f"{len(store)} images read, {len(store.failed)} failed: {args.out}")
    for path, reason in store.failed[:10]:
        print(f"  failed: {path}: {reason}")
    if len(store.failed) > 10:
        print(f"  and {len(store.failed) - 10} more: FeatureStore({str(args.out)!r}).failed")
    return 0 if len(store) else 1


def _probe(args: argparse.Namespace) -> int:
    from heads.attentive_probe import AttentiveProbe
    from heads.probe_files import save_probe
    from heads.probes import KnnProbe, LinearProbe, hold_out, report
    from vitbackbone.extract import FeatureStore

    out = Path(args.out or Path(args.store) / f"probe-{args.probe}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; want a folder")
    store = FeatureStore(args.store)
    kind = "tokens" if args.probe == "attentive" else _kind(store)
    X, y = _labelled(store, kind, store.class_names)
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"{store.directory} has the one class {store.class_names[classes[0]]!r}; want at least two")
    make: Callable[[], Any] = {
        "linear": lambda: LinearProbe(preset=args.preset),
        "knn": lambda: KnnProbe(k=args.k),
        "attentive": lambda: AttentiveProbe(form=args.form),
    }[args.probe]
    if args.test:
        test = FeatureStore(args.test)
        _same_features(store, test)
        probe, how = make().fit(X, y), f"on {args.test}"
        X_test, y_test = _labelled(test, kind, store.class_names)
    else:
        held = hold_out(codes, HOLD_OUT)
        if not held.any():
            raise ValueError(f"{store.directory} has one image a class, none to measure on; give a --test store")
        probe = make().fit(X[~held], y[~held])
        how = f"on {held.sum()} images held out of {args.store}; the saved probe is fitted on all {len(y)}"
        X_test, y_test = X[held], y[held]
    measured = report(probe, X_test, y_test, store.class_names)
    if not args.test:
        probe = make().fit(X, y)
    save_probe(probe, out, about={"features": kind, "store": store.manifest})
    print(f"{args.probe} probe, measured {how}\n{measured}\n")
    print(f"saved to {out}; try: vitbackbone predict PHOTO --probe {out}")
    return 0


def _predict(args: argparse.Namespace) -> int:
    from heads.probe_files import load_probe
    from vitbackbone.features import pool_cls, pool_mean
    from vitbackbone.inference import evaluating
    from vitbackbone.load import load_backbone

    probe, about = load_probe(args.probe)
    if not about.keys() >= {"features", "store"}:
        raise ValueError(f"{args.probe} was not saved by `vitbackbone probe`, so its features are not known")
    manifest = about["store"]
    backbone = load_backbone(args.model or manifest["model"]["name"], args.weights)
    _same_backbone(backbone, manifest)
    resolution, keep_aspect = (manifest["preprocessing"][key] for key in ("resolution", "keep_aspect"))
    size = tuple(resolution) if isinstance(resolution, list) else resolution

    def read(image: str) -> "Tensor":
        return backbone.preprocess(image, size, keep_aspect)

    def classify(pixels: "Tensor") -> "NDArray[Any]":
        with evaluating(backbone):
            (features,) = backbone.forward_layers(pixels[None], manifest["layers"][-1:], norm=manifest["norm"])
            read_of = {"cls": pool_cls, "patches": pool_mean, "tokens": lambda features: features.tokens}
            row = read_of[about["features"]](features)
        return probe.predict_proba(row.numpy())[0]

    return _print_classes(args.images, read, classify, [manifest["class_names"][i] for i in probe.classes_], top=3)


def _classify(args: argparse.Namespace) -> int:
    from heads.base import attach
    from heads.classification import checkpoint_head
    from vitbackbone.inference import check_device, evaluating
    from vitbackbone.load import load_checkpoint

    if args.top < 1:
        raise ValueError(f"--top {args.top}; want at least 1")
    if args.weights == "random":
        raise ValueError("--weights random is an untrained model without a classifier; want a file, or nothing")
    check_device(args.device)
    checkpoint = load_checkpoint(args.model, args.weights)
    backbone, head = checkpoint.backbone.to(args.device), checkpoint_head(checkpoint).to(args.device)
    model = attach(backbone, {"classes": head})

    def classify(pixels: "Tensor") -> "NDArray[Any]":
        with evaluating(backbone):
            return model(pixels[None].to(args.device))["classes"].softmax(dim=1)[0].cpu().numpy()

    names = _class_names(args.model, checkpoint, head.num_classes)
    return _print_classes(args.images, backbone.preprocess, classify, names, args.top)


def _show(args: argparse.Namespace) -> int:
    from vitbackbone.view import show

    for path in show(_load(args), args.image, args.out, resolution=args.resolution, layer=args.layer):
        print(path)
    return 0


def _models(args: argparse.Namespace) -> int:
    from vitbackbone.describe import models_table
    from vitbackbone.load import list_backbones

    names = list_backbones(args.pattern)
    if not names:
        raise ValueError(f"no name matches {args.pattern!r}; `vitbackbone models` lists them all")
    print(models_table(names))
    return 0


def _info(args: argparse.Namespace) -> int:
    from vitbackbone.describe import info, trace
    from vitbackbone.load import find_entry

    entry = find_entry(args.name)
    if args.trace:
        size = args.resolution or entry.preprocess.image_size
        print(trace(entry.config, size, entry.num_classes or None, entry.format))
    else:
        print(info(args.name, entry, args.resolution))
    return 0


def _demo(args: argparse.Namespace) -> int:
    from heads.probes import LinearProbe, report
    from vitbackbone.demo import run

    return run(Path(args.out), lambda X, y, X_test, y_test: report(LinearProbe().fit(X, y), X_test, y_test))


# ---- what they share ----------------------------------------------------------------------------------------------


def _load(args: argparse.Namespace) -> "BackboneModule":
    from vitbackbone.load import load_backbone

    if args.model == "nano":
        print(f"model: nano, the small built-in one; for real work give --model {STRONGER}", file=sys.stderr)
    return load_backbone(args.model, args.weights)


def _kind(store: "FeatureStore") -> str:
    """What of a store a probe reads: the CLS tokens where it has them, else the mean of the patches."""
    kinds = [kind for kind in ("cls", "patches") if kind in store.manifest["tokens"]]
    if not kinds:
        raise ValueError(f"{store.directory} has neither cls nor patches to probe")
    return kinds[0]


def _labelled(store: "FeatureStore", kind: str, class_names: Sequence[str]) -> "tuple[Any, NDArray[Any]]":
    """Features of the images that have a label, and their labels as indices into `class_names`."""
    if not len(store):
        raise ValueError(f"no image of {store.directory} was read; `FeatureStore.failed` says why")
    known = np.flatnonzero(store.labels >= 0)
    if not len(known):
        raise ValueError(
            f"{store.directory} has no labels: extract a folder whose sub-folders are classes, or a list with a label "
            "column"
        )
    strange = sorted(set(store.class_names) - set(class_names))
    if strange:
        raise ValueError(f"{store.directory} has classes that the probe was not fitted on: {', '.join(strange)}")
    y = np.array([class_names.index(name) for name in store.class_names])[store.labels[known]]
    if kind == "cls":
        return np.asarray(store.cls[known], dtype=np.float32), y
    if kind == "tokens":
        return store.tokens[known], y
    return np.stack([store.patches(int(i)).mean(axis=(1, 2), dtype=np.float32) for i in known]), y


def _same_features(store: "FeatureStore", test: "FeatureStore") -> None:
    if _kind(store) != _kind(test):
        raise ValueError(f"{store.directory} holds {_kind(store)} and {test.directory} {_kind(test)}; want the same")
    for key in ("model", "preprocessing", "layers", "norm"):
        if store.manifest[key] != test.manifest[key]:
            raise ValueError(f"{store.directory} and {test.directory} hold different features: their {key} differs")


def _same_backbone(backbone: "BackboneModule", manifest: dict[str, Any]) -> None:
    """Refuses another backbone than the one that a store was made with."""
    from vitbackbone.fingerprint import weights_sha256

    model, preprocessing = manifest["model"], asdict(backbone.preprocess)
    pairs = {
        "weights": (model["weights_sha256"], weights_sha256(backbone)),
        "settings": (model["spec"]["settings"], backbone.spec.settings),
        **{key: (manifest["preprocessing"].get(key), value) for key, value in preprocessing.items()},
    }
    # A tuple comes back from JSON as a list.
    wrong = [name for name, (saved, now) in pairs.items() if json.dumps(saved) != json.dumps(now)]
    if wrong:
        raise ValueError(
            f"the probe was fitted on another backbone than this {model['name']}: {', '.join(wrong)} differ. Give the "
            "same one by --model and --weights; one of random weights is gone"
        )


def _class_names(model: str, checkpoint: "Checkpoint", num_classes: int) -> Sequence[str]:
    """What the outputs of a classifier mean: the checkpoint's own names; of a model of the zoo ImageNet's, which no
    file of timm's or of the authors holds; else their indices."""
    from heads.classification import imagenet_labels
    from vitbackbone.load import find_entry

    if checkpoint.labels:
        return checkpoint.labels
    published = find_entry(model).num_classes == num_classes  # weights given by hand may have classes of their own
    return (imagenet_labels(num_classes) if published else ()) or [str(i) for i in range(num_classes)]


def _print_classes(
    images: Sequence[str],
    read: "Callable[[str], Tensor]",
    classify: "Callable[[Tensor], NDArray[Any]]",
    names: Sequence[str],
    top: int,
) -> int:
    """A line for each of the `top` likeliest classes of each image: `classify` makes (K,) probabilities of what `read`
    makes of a file, and one that cannot be read is named. Returns the exit code."""
    failed = 0
    for image in images:
        try:
            pixels = read(image)
        except (OSError, ValueError) as error:
            print(f"{image}\tfailed: {error}", file=sys.stderr)
            failed += 1
            continue
        probabilities = classify(pixels)
        for i in np.argsort(-probabilities)[:top]:
            print(f"{image}\t{names[i]}\t{probabilities[i]:.3f}")
    return 1 if failed == len(images) else 0


# ---- arguments ----------------------------------------------------------------------------------------------------


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Examples as they are written, and defaults behind what an option says."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vitbackbone",
        description="Features out of Vision Transformers.",
        epilog="example:\n  vitbackbone demo",
        formatter_class=_Help,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str, example: str) -> argparse.ArgumentParser:
        epilog = f"example:\n  {example}"
        added = commands.add_parser(name, help=help, description=help, epilog=epilog, formatter_class=_Help)
        added.set_defaults(run=run)
        return added

    def model(to: argparse.ArgumentParser) -> None:
        to.add_argument(
            "--model", default="nano", metavar="NAME", help="of `vitbackbone models`, hf:OWNER/REPO, a folder"
        )
        to.add_argument("--weights", metavar="FILE", help="weights downloaded by hand, or 'random'")

    p = command(
        "extract",
        _extract,
        "Write the features of a folder of images, a glob, or a CSV/parquet list into a store. Run again, it resumes.",
        f"vitbackbone extract photos/ --model {STRONGER} --out features/ --tokens cls,patches",
    )
    p._negative_number_matcher = re.compile(r"-\d+(,-?\d+)*$")  # so that `--layers -4,-1` is a value and not an option
    what = "a folder (sub-folders are labels), a quoted glob, or a list with the columns path[,label]"
    p.add_argument("source", metavar="SOURCE", help=what)
    model(p)
    p.add_argument("--out", required=True, metavar="DIR", help="the store; FeatureStore(DIR) reads it")
    p.add_argument("--tokens", type=_words, default="cls", metavar="KINDS", help="of cls,patches,registers")
    p.add_argument("--layers", type=_numbers, default="-1", metavar="N,N", help="blocks, negative from the end")
    p.add_argument("--batch-size", type=int, default=32, metavar="N", help="images to a forward")
    p.add_argument(
        "--shard-size", type=int, metavar="N", help="images to a file (default: 1000, or what makes 256 MiB)"
    )
    _resolution(p)
    p.add_argument("--keep-aspect", action="store_true", help="keep the whole photo and its aspect, crop nothing")
    precisions = ["float32", "float16", "bfloat16"]
    p.add_argument("--dtype", default="float32", choices=precisions, help="of the stored features")
    p.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that read images; 0 reads in this one"
    )
    p.add_argument("--device", default="cpu", help="such as cpu, cuda, cuda:1 or mps")

    p = command(
        "probe",
        _probe,
        "Fit a classifier on the features of a store, print how good it is, and save it.",
        "vitbackbone probe features/train --test features/test --probe linear",
    )
    p.add_argument("store", metavar="STORE", help="what `vitbackbone extract` wrote, with labels")
    p.add_argument("--test", metavar="STORE", help="measure on it; without one, on a fifth of the first, held out")
    probes = "logistic regression, neighbours, or attention to patches, which the store must have"
    p.add_argument("--probe", choices=["linear", "knn", "attentive"], default="linear", help=probes)
    p.add_argument("--preset", choices=["clip", "dinov2"], default="clip", help="of linear: one C, or a sweep of 45")
    p.add_argument("--k", type=int, default=20, metavar="N", help="of knn: how many neighbours vote")
    p.add_argument("--form", choices=["vjepa", "aim"], default="vjepa", help="of attentive: whose")
    p.add_argument("--out", metavar="DIR", help="where to save the probe (default: STORE/probe-KIND)")

    p = command(
        "predict",
        _predict,
        "Classify images with a saved probe: the three likeliest classes of each, with probabilities.",
        "vitbackbone predict cat.jpg --probe features/train/probe-linear",
    )
    p.add_argument("images", nargs="+", metavar="IMAGE", help="files")
    p.add_argument("--probe", required=True, metavar="DIR", help="what `vitbackbone probe` saved")
    p.add_argument("--model", metavar="NAME", help="if the backbone lies elsewhere than when the probe was fitted")
    p.add_argument("--weights", metavar="FILE", help="its weights, if they were given by hand")

    p = command(
        "classify",
        _classify,
        "Classify images with a checkpoint's own classifier: the likeliest classes of each, with probabilities.",
        "vitbackbone classify cat.jpg --model hf:google/vit-base-patch16-224",
    )
    p.add_argument("images", nargs="+", metavar="IMAGE", help="files")
    p.add_argument("--model", required=True, metavar="NAME", help="one with a classifier, named as for `extract`")
    p.add_argument("--weights", metavar="FILE", help="weights downloaded by hand")
    p.add_argument("--top", type=int, default=5, metavar="N", help="how many classes to print of each image")
    p.add_argument("--device", default="cpu", help="such as cpu, cuda, cuda:1 or mps")

    p = command(
        "show",
        _show,
        "Write pictures of what a backbone sees: attention per head, rollout, PCA of the patches.",
        "vitbackbone show photo.jpg --resolution 128 --out pictures/",
    )
    p.add_argument("image", metavar="IMAGE", help="a file")
    model(p)
    p.add_argument("--out", required=True, metavar="DIR", help="folder for the pictures")
    _resolution(p)
    p.add_argument("--layer", type=int, default=-1, metavar="N", help="a block, negative from the end")

    p = command("demo", _demo, "The whole job on sample photos and digits, offline.", "vitbackbone demo --out demo")
    p.add_argument("--out", default="demo", metavar="DIR", help="folder for pictures and features")

    p = command("models", _models, "List the backbones known by name.", "vitbackbone models '*dinov2*'")
    p.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="a shell pattern")

    p = command(
        "info",
        _info,
        "Tokens, parameters, compute and memory of a backbone, and how they grow; or its forward step by step.",
        "vitbackbone info vit_base_patch16_224.augreg_in21k --resolution 384",
    )
    p.add_argument("name", metavar="NAME", help="of `vitbackbone models`, hf:OWNER/REPO, a folder")
    _resolution(p)
    p.add_argument("--trace", action="store_true", help="print the tensor at every step of the forward")
    return parser


def _resolution(parser: argparse.ArgumentParser) -> None:
    text = "input size, a side or HEIGHTxWIDTH (default: the checkpoint's own)"
    parser.add_argument("--resolution", type=_pixels, metavar="PX", help=text)


def _pixels(text: str) -> int | tuple[int, int]:
    sides = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not sides:
        raise argparse.ArgumentTypeError(f"{text!r}; want a side such as 224, or HEIGHTxWIDTH such as 160x352")
    height, width = sides.groups()
    return (int(height), int(width)) if width else int(height)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _numbers(text: str) -> list[int]:
    if not re.fullmatch(r"-?\d+(,-?\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r}; want numbers such as -1 or 2,5,8,11")
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
