"""`probe` and `predict`: a classifier on stored features, and on photos."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitbackbone.cli.classes import print_classes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from vitbackbone.extract import FeatureStore
    from vitbackbone.features import BackboneModule

HOLD_OUT = 0.2  # of a store that is probed without a test store


def probe(args: argparse.Namespace) -> int:
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
        _check_same_features(store, test)
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
    save_probe(probe, out, about={"features": kind, "store": store.manifest, "class_names": store.class_names})
    print(f"{args.probe} probe, measured {how}\n{measured}\n")
    print(f"saved to {out}; try: vitbackbone predict PHOTO --probe {out}")
    return 0


def predict(args: argparse.Namespace) -> int:
    from heads.probe_files import load_probe
    from vitbackbone.features import pool_cls, pool_mean
    from vitbackbone.inference import evaluating
    from vitbackbone.load import load_backbone

    probe, about = load_probe(args.probe)
    if not about.keys() >= {"features", "store", "class_names"}:
        raise ValueError(f"{args.probe} was not saved by `vitbackbone probe`, so its features are not known")
    manifest = about["store"]
    backbone = load_backbone(args.model or manifest["model"]["name"], args.weights)
    check_same_backbone(backbone, manifest)
    resolution, keep_aspect = (manifest["preprocessing"][key] for key in ("resolution", "keep_aspect"))
    size = tuple(resolution) if isinstance(resolution, list) else resolution

    def read(image: str) -> "Tensor":
        return backbone.preprocess(image, size, keep_aspect, args.max_pixels)

    def classify(pixels: "Tensor") -> "NDArray[Any]":
        with evaluating(backbone):
            (features,) = backbone.forward_layers(pixels[None], manifest["layers"][-1:], norm=manifest["norm"])
            read_of = {"cls": pool_cls, "patches": pool_mean, "tokens": lambda features: features.tokens}
            row = read_of[about["features"]](features)
        return probe.predict_proba(row.numpy())[0]

    return print_classes(args.images, read, classify, [about["class_names"][i] for i in probe.classes_], top=3)


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
        return store.rows[known], y
    if kind == "tokens":
        return store.tokens[known], y
    return np.stack([store.patches(int(i)).mean(axis=(1, 2), dtype=np.float32) for i in known]), y


def _check_same_features(store: "FeatureStore", test: "FeatureStore") -> None:
    if _kind(store) != _kind(test):
        raise ValueError(f"{store.directory} holds {_kind(store)} and {test.directory} {_kind(test)}; want the same")
    for key in ("model", "preprocessing", "layers", "norm"):
        if store.manifest[key] != test.manifest[key]:
            raise ValueError(f"{store.directory} and {test.directory} hold different features: their {key} differs")


def check_same_backbone(backbone: "BackboneModule", manifest: dict[str, Any]) -> None:
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
