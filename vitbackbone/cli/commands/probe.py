"""The commands `probe` and `predict`: fit a classifier on stored features, and apply it to photos."""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitbackbone.cli.commands.classify import print_classes
from vitbackbone.cli.commands.probe_tables import Measured, confusion_table
from vitbackbone.cli.model import loading
from vitbackbone.cli.output import print_json
from vitbackbone.cli.places import folder_beside
from vitbackbone.cli.text import escaped

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from heads.probes.measures import Report
    from vitbackbone.contract import BackboneModule
    from vitbackbone.store import FeatureStore

log = logging.getLogger("vitbackbone.probe")
HOLD_OUT = 0.2  # part of the store to measure on, if there is no test store


def probe(args: argparse.Namespace) -> int:
    from heads.probes.files import save_probe
    from heads.probes.measures import report_of
    from vitbackbone.store import FeatureStore

    out = folder_beside(args.out, args.store, f"probe-{args.probe}")
    store = FeatureStore(args.store)
    kind = "tokens" if args.probe == "attentive" else _kind(store)
    images, y = _labelled(store, store.class_names)
    if len(np.unique(y)) < 2:
        raise ValueError(f"{store.storage.url} has the one class {store.class_names[y[0]]!r}; want at least two")
    groups = _groups(store, images, args.groups)
    if args.test:
        test = FeatureStore(args.test)
        _check_same_features(store, test)
        fitted = _fit(args, _features(store, kind, images), y, groups)
        tested, y_test = _labelled(test, store.class_names)
        shared, how = _shared(store, images, test, tested), f"on {escaped(args.test)}"
        if shared:
            log.warning(
                "%d of the %d photos of %s were also used to fit the probe: this accuracy is too high",
                *(shared, len(tested), args.test),
            )
    else:
        held = _hold_out(store, y, groups)
        test, tested, y_test, shared = store, images[held], y[held], 0
        fitted = _fit(args, _features(store, kind, images[~held]), y[~held], groups[~held])
        parts = len(np.unique(groups[held])), len(np.unique(groups))
        how = f"on {held.sum()} images in {parts[0]} of {parts[1]} groups, held out of {escaped(args.store)}"
    measured = _measure(fitted, test, tested, y_test, _features(test, kind, tested), store.class_names)
    result = report_of(fitted.classes_, measured.predicted, y_test, store.class_names)
    if not args.test:
        fitted = _fit(args, _features(store, kind, images), y, groups)
        how += f"; the saved probe is fitted on all {len(y)}"
    save_probe(fitted, out, about={"features": kind, "store": store.manifest, "class_names": store.class_names})
    files, note = measured.write(out, result, Path(args.photos) if args.photos else None)
    if note:
        log.warning(note)
    if args.json:
        print_json(_summary(args, out, files, result, len(np.unique(groups)), shared))
    else:
        _print_report(args, out, files, result, how)
    return 0


def _fit(args: argparse.Namespace, X: Any, y: "NDArray[np.int64]", groups: "NDArray[np.int64]") -> Any:
    from heads.probes.attentive import AttentiveProbe
    from heads.probes.knn import KnnProbe
    from heads.probes.linear import LinearProbe

    if args.probe == "linear":
        return LinearProbe(preset=args.preset).fit(X, y, groups=groups)
    probe = KnnProbe(k=args.k) if args.probe == "knn" else AttentiveProbe(form=args.form, progress=not args.quiet)
    return probe.fit(X, y)


def _groups(store: "FeatureStore", images: "NDArray[np.int64]", by: str | None) -> "NDArray[np.int64]":
    """Return the group of each image. Duplicates are one group, and `--groups` joins more."""
    from heads.probes.splits import join_groups
    from vitbackbone.store import copies, groups_by

    same = copies(store)[images]
    return same if by is None else join_groups(same, groups_by(store, by, images))


def _hold_out(store: "FeatureStore", y: "NDArray[np.int64]", groups: "NDArray[np.int64]") -> "NDArray[np.bool_]":
    from heads.probes.splits import hold_out

    held = hold_out(np.unique(y, return_inverse=True)[1], HOLD_OUT, groups)
    if not held.any():
        what = "one image" if len(np.unique(groups)) == len(groups) else "one group of images"
        raise ValueError(
            f"{store.storage.url} has only {what} in each class and none to measure on; give a --test store"
        )
    return held


def _shared(
    store: "FeatureStore", images: "NDArray[np.int64]", test: "FeatureStore", tested: "NDArray[np.int64]"
) -> int:
    """Count the photos of a test store that are exact duplicates of photos that the probe was fitted on."""
    fitted, measured = (
        [sha256 for sha256 in each.images["sha256"].take(rows).to_pylist() if sha256]
        for each, rows in ((store, images), (test, tested))
    )
    known = set(fitted)
    return sum(sha256 in known for sha256 in measured)


def _measure(
    probe: Any,
    store: "FeatureStore",
    images: "NDArray[np.int64]",
    truth: "NDArray[np.int64]",
    X: Any,
    names: Sequence[str],
) -> Measured:
    probabilities = probe.predict_proba(X)
    best = probabilities.argmax(axis=1)
    return Measured(store, images, truth, probe.classes_[best], probabilities.max(axis=1), names)


def _print_report(args: argparse.Namespace, out: Path, files: Sequence[Path], result: "Report", how: str) -> None:
    shown = replace(result, classes=tuple(replace(row, name=escaped(row.name)) for row in result.classes))
    print(f"{args.probe} probe, measured {how}\n{shown}\n")
    if table := confusion_table(shown):
        print(f"{table}\n")
    print(f"saved to {escaped(str(out))}, with {', '.join(file.name for file in files)}")
    print(f"try: vitbackbone predict PHOTO --probe {escaped(str(out))}")


def _summary(
    args: argparse.Namespace, out: Path, files: Sequence[Path], result: "Report", groups: int, shared: int
) -> dict[str, Any]:
    return {
        "probe": args.probe,
        "out": out,
        "files": files,
        "accuracy": result.accuracy,
        "interval": result.interval,
        "correct": result.correct,
        "total": result.total,
        "groups": groups,
        "test_photos_fitted_on": shared,
        "classes": [asdict(row) for row in result.classes],
        "confusion": result.confusion,
    }


def predict(args: argparse.Namespace) -> int:
    from heads.probes.files import load_probe
    from vitbackbone.checkpoints import load_backbone
    from vitbackbone.contract import evaluating, pool_cls, pool_mean
    from vitbackbone.store import read_photos

    probe, about = load_probe(args.probe)
    names = _check_about(args.probe, probe.classes_, about)
    manifest = about["store"]
    backbone = load_backbone(args.model or manifest["model"]["name"], args.weights, **loading(args))
    check_same_backbone(backbone, manifest)
    resolution, keep_aspect = (manifest["preprocessing"][key] for key in ("resolution", "keep_aspect"))
    size = tuple(resolution) if isinstance(resolution, list) else resolution

    def classify(pixels: "Tensor") -> "NDArray[Any]":
        with evaluating(backbone):
            (features,) = backbone.forward_layers(pixels[None], manifest["layers"][-1:], norm=manifest["norm"])
            read_of = {"cls": pool_cls, "patches": pool_mean, "tokens": lambda features: features.tokens}
            row = read_of[about["features"]](features)
        return probe.predict_proba(row.numpy())[0]

    photos = read_photos(args.images, backbone.preprocess, size, keep_aspect, args.max_pixels)
    return print_classes(photos, classify, names, 3, args.json)


def _check_about(folder: str, classes: "NDArray[Any]", about: dict[str, Any]) -> list[str]:
    """Return the class names of a saved probe. Raises `ValueError` if `vitbackbone probe` did not save it."""
    if not about.keys() >= {"features", "store", "class_names"}:
        raise ValueError(f"{folder} was not saved by `vitbackbone probe`, so it is unknown which features it reads")
    names = about["class_names"]
    indices = classes.tolist()
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < len(names) for i in indices):
        raise ValueError(
            f"{folder}/probe.json: classes are {indices[:5]}; want indices of its {len(names)} class_names, from 0 to "
            f"{len(names) - 1}"
        )
    return [names[i] for i in indices]


def _kind(store: "FeatureStore") -> str:
    """Return the features that a probe reads: `cls` if the store has CLS tokens, else `patches`, their mean."""
    kinds = [kind for kind in ("cls", "patches") if kind in store.manifest["tokens"]]
    if not kinds:
        raise ValueError(f"{store.storage.url} has neither cls nor patches to probe")
    return kinds[0]


def _labelled(store: "FeatureStore", class_names: Sequence[str]) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """Return the rows of labelled images (N,), and their labels (N,) as indices into `class_names`."""
    if not len(store):
        raise ValueError(f"no image of {store.storage.url} could be read; run `vitbackbone extract` again to see why")
    known = np.flatnonzero(store.labels >= 0)
    if not len(known):
        raise ValueError(
            f"{store.storage.url} has no labels: extract a folder whose sub-folders are classes, or a list with a "
            "column label"
        )
    if len(known) < len(store):
        log.warning("%s: images without a label, left out: %d", store.storage.url, len(store) - len(known))
    strange = sorted(set(store.class_names) - set(class_names))
    if strange:
        raise ValueError(f"{store.storage.url} has classes that the probe was not fitted on: {', '.join(strange)}")
    return known, np.array([class_names.index(name) for name in store.class_names])[store.labels[known]]


def _features(store: "FeatureStore", kind: str, images: "NDArray[np.int64]") -> Any:
    if kind == "cls":
        return store.rows[images]
    if kind == "tokens":
        return store.tokens[images]
    return np.stack([store.patches(int(i)).mean(axis=(1, 2), dtype=np.float32) for i in images])


def _check_same_features(store: "FeatureStore", test: "FeatureStore") -> None:
    if _kind(store) != _kind(test):
        raise ValueError(
            f"{store.storage.url} holds {_kind(store)} and {test.storage.url} {_kind(test)}; want the same --tokens"
        )
    for key in ("model", "preprocessing", "layers", "norm"):
        if store.manifest[key] != test.manifest[key]:
            raise ValueError(f"{store.storage.url} and {test.storage.url} hold different features: their {key} differs")


def check_same_backbone(backbone: "BackboneModule", manifest: dict[str, Any]) -> None:
    """Raise `ValueError` if a backbone is not the one that a store was made with."""
    from vitbackbone.contract import weights_sha256

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
            "same one with --model and --weights; random weights cannot be made again"
        )
