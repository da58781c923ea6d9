"""Run protocols on a backbone, and keep their results."""

import logging
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch

from vitbackbone.contract import BackboneModule
from vitbackbone.evaluation.datasets import Check, Labelled, find_layout
from vitbackbone.evaluation.protocol import Protocol, Score
from vitbackbone.evaluation.protocols import find_protocol
from vitbackbone.evaluation.report import write_report
from vitbackbone.evaluation.results import Results, make_result, read_results
from vitbackbone.evaluation.run import Machine, Run
from vitbackbone.files import SHORT, did_you_mean

log = logging.getLogger("vitbackbone")
Data = str | PathLike[str] | Mapping[str, str | PathLike[str]]


def evaluate(
    protocols: str | Sequence[str],
    backbone: BackboneModule,
    data: Data,
    out: str | PathLike[str] | None = None,
    *,
    variant: str | None = None,
    settings: Mapping[str, Any] | None = None,
    limit: int | None = None,
    device: str = "cpu",
    devices: Sequence[str] | Literal["all"] | None = None,
    workers: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Results:
    """Compute a backbone's figures by the papers' protocols. `vitbackbone evaluate list` shows the protocols.

    `data`: the folder of each dataset by its name, or the one folder of the protocol's own dataset.
    `out`: the folder for results, trained heads, and everything that a killed run resumes from. Results of several
    calls join in it. With None, only the returned results are kept.
    `variant`: the paper whose settings are used, such as "v2" or "v3"; by default the protocol's first. `settings`:
    settings to change, such as `{"fit.ks": "10,20"}`.
    `limit`: the largest number of images of each part of a dataset. Trainings are shortened likewise, unless `settings`
    has their steps. Such a run is not compared with published figures.
    `device`, `devices`, `workers`, `batch_size`, `progress`: as for `extract`. Several devices share all images that
    no head is trained on; heads are trained on `device`.

    Raises `ValueError` before anything is computed: on an unknown protocol, variant, dataset, setting or device, on an
    argument of another type, and on a dataset of another layout.
    """
    if limit is not None:
        limit = _whole("limit", limit, 1)
    workers, batch_size = _whole("workers", workers, 0), _whole("batch_size", batch_size, 1)
    _check_settings(settings)
    _check_devices(devices)
    pairs, folders = plan(protocols, data, variant, settings)
    machine = Machine(device, workers, batch_size, progress, devices)
    machine.several()
    if out is None:
        with tempfile.TemporaryDirectory(prefix="vitbackbone-evaluate-") as folder:
            return _run_all(pairs, backbone, folders, Path(folder), limit, machine)
    if (Path(out) / "snapshots").is_dir():
        raise ValueError(f"{out} is a feature store of `extract`; give another folder for results")
    return _run_all(pairs, backbone, folders, Path(out), limit, machine)


def _whole(name: str, given: Any, least: int) -> int:
    """Return a whole number. Raises `ValueError` on anything else, and on a number below `least`."""
    if isinstance(given, bool) or not isinstance(given, Integral) or int(given) < least:
        raise ValueError(f"{name}={SHORT.repr(given)}; want a whole number of at least {least}")
    return int(given)


def _check_settings(given: Any) -> None:
    """Raise `ValueError` if settings are not a dict with names."""
    if given is not None and not (isinstance(given, Mapping) and all(isinstance(key, str) for key in given)):
        raise ValueError(f'settings={SHORT.repr(given)}; want a dict of settings, such as {{"fit.ks": "10,20"}}')


def _check_devices(given: Any) -> None:
    """Raise `ValueError` if several devices are neither a list nor "all"."""
    listed = isinstance(given, Sequence) and not isinstance(given, str)
    if listed and all(isinstance(each, str | torch.device) for each in given):
        return
    if given is not None and (not isinstance(given, str) or given != "all"):
        raise ValueError(f'devices={SHORT.repr(given)}; want a list of names, such as ("cuda:0", "cuda:1"), or "all"')


def plan(
    protocols: str | Sequence[str], data: Data, variant: str | None = None, settings: Mapping[str, Any] | None = None
) -> tuple[list[tuple[Protocol, str]], dict[str, Path]]:
    """Return each protocol with each dataset that it runs on, and the folders of the datasets. Nothing is read.

    Raises `ValueError` as `evaluate` does on an unknown protocol, variant, dataset or setting.
    """
    names = [protocols] if isinstance(protocols, str) else list(protocols)
    if not names:
        raise ValueError("no protocol was given; `vitbackbone evaluate list` shows them")
    texts = {key: _text(value) for key, value in (settings or {}).items()}
    chosen = _with_settings([find_protocol(name, variant) for name in names], texts)
    folders = _folders(data, chosen)
    return [(each, dataset) for each in chosen for dataset in own_datasets(each, folders)], folders


def _with_settings(protocols: Sequence[Protocol], texts: Mapping[str, str]) -> list[Protocol]:
    """Change settings in each protocol that has them. Raises `ValueError` on one that no protocol has."""
    found = []
    for each in protocols:
        own = each.names()
        try:
            found.append(each.with_settings({key: text for key, text in texts.items() if key in own}))
        except ValueError as error:
            hint = "; protocols with other settings can run one by one into one folder" if len(protocols) > 1 else ""
            raise ValueError(f"{each.name}: {error}{hint}") from error
    for key in texts:
        if not any(key in each.names() for each in protocols):
            protocols[0].with_settings({key: texts[key]})  # its error names what there is
    return found


def own_datasets(protocol: Protocol, folders: Mapping[str, Path]) -> list[str]:
    """Return the given datasets that a protocol runs on. Raises `ValueError` if one that it needs is missing."""
    own = [name for name in folders if find_layout(name).kind == protocol.kind]
    if protocol.joined:
        own = [name for name in protocol.datasets if name in folders][:1]
    if not own:
        raise ValueError(
            f"{protocol.name} needs a dataset of the kind {protocol.kind}, such as --data {protocol.datasets[0]}=DIR"
        )
    missing = [name for name in protocol.also if name not in folders]
    if missing:
        raise ValueError(f"{protocol.name} also needs --data {missing[0]}=DIR")
    return own


def _folders(data: Data, protocols: Sequence[Protocol]) -> dict[str, Path]:
    """Return the folder of each dataset. Raises `ValueError` if no protocol reads one of them, or it is missing."""
    if not isinstance(data, Mapping):
        data = {protocols[0].datasets[0]: data}
    folders = {name: Path(folder) for name, folder in data.items()}
    for name, folder in folders.items():
        about = find_layout(name)
        if not any(about.kind == each.kind or name in (*each.also, *each.optional) for each in protocols):
            read = sorted({name for each in protocols for name in (*each.datasets, *each.also, *each.optional)})
            raise ValueError(
                f"none of these protocols reads {name}{did_you_mean(name, read) or '.'} They read {', '.join(read)}"
            )
        if not folder.exists():
            raise ValueError(f"--data {name}={folder}: there is no such folder")
    return folders


def _run_all(
    pairs: Sequence[tuple[Protocol, str]],
    backbone: BackboneModule,
    folders: Mapping[str, Path],
    out: Path,
    limit: int | None,
    machine: Machine,
) -> Results:
    found: dict[str, Any] = {}
    runs = [Run(each, backbone, dataset, folders, out, limit, machine, found=found) for each, dataset in pairs]
    for run in runs:  # every layout is read before anything is computed
        for name in (*_read(run), *(name for name in run.protocol.optional if name in folders)):
            _check_labels(run.protocol, name, run.read(name))
    out.mkdir(parents=True, exist_ok=True)
    results, mine = read_results(out), Results()
    for run in runs:
        log.info("%s (%s) on %s", run.protocol.name, run.protocol.variant, run.dataset)
        start = time.monotonic()
        scores = run.protocol.score(run)
        _check_scores(run, scores)
        checks = {
            name: Check(find_layout(name), folders[name], find_layout(name).counts(run.read(name)))
            for name in _read(run)
        }
        made = make_result(run, scores, checks, time.monotonic() - start)
        results, mine = results.with_result(made), mine.with_result(made)
        results.write(out)
        write_report(results, out)
    return mine


def _read(run: Run) -> list[str]:
    """Return the datasets that a run must have."""
    protocol = run.protocol
    own = [name for name in run.folders if name in protocol.datasets] if protocol.joined else [run.dataset]
    return [*own, *protocol.also]


def _check_scores(run: Run, scores: Sequence[Score]) -> None:
    """Raise `ValueError` if a main figure is not a number, because nothing that counts is in the dataset."""
    wrong = [each.metric for each in scores if each.main and not math.isfinite(each.value)]
    if wrong or not scores:
        raise ValueError(
            f"{run.protocol.name} on {run.dataset} has no {wrong[0] if wrong else 'figure'}: no label of the tested "
            f"images counts. Look at the labels in {run.folders[run.dataset]}; finished work is kept"
        )


def _check_labels(protocol: Protocol, name: str, data: Any) -> None:
    """Raise `ValueError` if images have several labels and the protocol takes one."""
    if isinstance(data, Labelled) and data.train.labels.ndim > 1 and not protocol.several_labels:
        raise ValueError(f"the images of {name} have several labels, and {protocol.name} takes one; use logistic")


def _text(value: Any) -> str:
    """Return a setting's value as the text that `--set` takes."""
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value)) or "none"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
