"""The command `evaluate`: the papers' protocols on a backbone, their settings, and checks of datasets."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitbackbone.cli.commands.extract import terminable
from vitbackbone.cli.model import load
from vitbackbone.cli.output import print_json
from vitbackbone.cli.text import escaped, printable

if TYPE_CHECKING:
    from vitbackbone.evaluation import Protocol

NAMED = 3  # images that could not be read


def run_evaluate(args: argparse.Namespace) -> int:
    word, rest = args.what[0], args.what[1:]
    return VERBS[word](args, rest) if word in VERBS else _evaluate(args)


def _evaluate(args: argparse.Namespace) -> int:
    from vitbackbone.evaluation import evaluate, plan

    if not args.out:
        raise ValueError("give --out DIR, the folder for results and for what a killed run resumes from")
    if not args.data:
        raise ValueError(f"give --data NAME=DIR; `vitbackbone evaluate describe {args.what[0]}` names its datasets")
    data, settings = _data(args.data), _pairs(args.set, "--set")
    plan(args.what, data, args.variant, settings)  # tells what is wrong before weights are loaded
    with terminable():
        results = evaluate(
            args.what,
            load(args),
            data,
            args.out,
            variant=args.variant,
            settings=settings,
            limit=args.limit,
            device=args.device,
            devices=args.devices,
            workers=args.workers,
            batch_size=args.batch_size,
            progress=not args.quiet,
        )
    if args.json:
        print_json([each.model_dump() for each in results])
    else:
        print(printable_lines(str(results)))
        print(f"results.json, report.md, report.html and report.tex: {escaped(args.out)}")
    lost = [*dict.fromkeys(name for each in results for name in each.unreadable)]
    if lost:
        more = f" and {len(lost) - NAMED} more, which results.json names" if len(lost) > NAMED else ""
        print(f"could not be read: {', '.join(map(escaped, lost[:NAMED]))}{more}", file=sys.stderr)
    return 1 if lost else 0


def _list(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from vitbackbone.evaluation import PROTOCOLS, variants

    _no_more(rest, "list")
    records = [each for name in PROTOCOLS for each in variants(name)]
    if args.json:
        print_json([_about(each) for each in records])
        return 0
    width = max(len(each.name) for each in records)
    for name in PROTOCOLS:
        found = variants(name)
        marks = ", ".join(each.variant for each in found)
        print(f"{name:<{width}}  {found[0].summary}  [{marks}]")
    return 0


def _describe(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from vitbackbone.evaluation import find_protocol, variants

    if not rest:
        raise ValueError("give a protocol: vitbackbone evaluate describe PROTOCOL")
    found = [[find_protocol(name, args.variant)] if args.variant else variants(name) for name in rest]
    records = [each.with_settings(_pairs(args.set, "--set")) for protocols in found for each in protocols]
    if args.json:
        print_json([_about(each) for each in records])
        return 0
    for each in records:
        print(_described(each))
    return 0


def _check(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from vitbackbone.evaluation import find_layout, find_protocol

    if not rest or not args.data:
        raise ValueError("give a protocol and its data: vitbackbone evaluate check PROTOCOL --data DIR")
    protocols = [find_protocol(name, args.variant) for name in rest]
    given = _data(args.data)
    folders = given if isinstance(given, Mapping) else {protocols[0].datasets[0]: given}
    checks, wrong = [], 0
    for name, folder in folders.items():
        checked = find_layout(name).check(Path(folder))
        wrong += bool(checked.differing)
        checks.append(
            {"dataset": name, "folder": folder, "counts": checked.counts, "official": checked.layout.official}
        )
        if args.json:
            continue
        print(f"{name} ({checked.layout.title}) in {escaped(folder)}")
        for what, count in checked.counts.items():
            official = checked.layout.official.get(what)
            beside = "" if official is None else ", as official" if official == count else f", official {official:,}"
            print(f"  {what}: {count:,}{beside}")
    for each in protocols:
        missing = [name for name in each.also if name not in folders]
        if missing and not args.json:
            print(f"{each.name} also needs --data {missing[0]}=DIR")
        wrong += bool(missing)
    if args.json:
        print_json(checks)
    else:
        print("not complete: no published figure will stand beside the figures" if wrong else "complete")
    return 1 if wrong else 0


def _report(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from vitbackbone.evaluation import read_results, write_report

    if len(rest) != 1:
        raise ValueError("give one output folder: vitbackbone evaluate report OUT")
    out = Path(rest[0])
    results = read_results(out)
    if not len(results):
        begun = any((out / name).is_dir() for name in ("work", "features"))
        hint = (
            "no protocol is finished yet: give the command of this run again, and it goes on where it was"
            if begun
            else "`vitbackbone evaluate PROTOCOL --out DIR` writes one"
        )
        raise ValueError(f"{escaped(rest[0])} has no results.json; {hint}")
    files = write_report(results, out)
    if args.json:
        print_json([each.model_dump() for each in results])
    else:
        print(printable_lines(str(results)))
        print(", ".join(escaped(str(file)) for file in files))
    return 0


VERBS: dict[str, Callable[[argparse.Namespace, Sequence[str]], int]] = {
    "list": _list,
    "describe": _describe,
    "check": _check,
    "report": _report,
}


def printable_lines(text: str) -> str:
    """Return a text whose lines cannot steer a terminal."""
    return "\n".join(printable(line) for line in text.splitlines())


def _described(protocol: "Protocol") -> str:
    from vitbackbone.evaluation import find_layout

    rows = [(each.key, _shown(each.value), each.meaning, each.source) for each in protocol.settings()]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [f"{protocol.name}, variant {protocol.variant}: {protocol.summary}", f"source: {protocol.source}", ""]
    lines += [
        f"  {key:<{widths[0]}}  {value:<{widths[1]}}  {meaning} [{source}]" for key, value, meaning, source in rows
    ]
    lines += ["", "datasets:"]
    for name in (*protocol.datasets, *protocol.also, *protocol.optional):
        use = "" if name in protocol.datasets else " (also needed)" if name in protocol.also else " (optional)"
        lines.append(f"  {name}: {find_layout(name).tree}{use}")
    lines += [*(f"note: {trap}" for trap in protocol.traps), ""]
    return "\n".join(lines)


def _about(protocol: "Protocol") -> dict[str, Any]:
    names = ("name", "variant", "summary", "source", "kind", "datasets", "also", "optional", "traps")
    about: dict[str, Any] = {name: getattr(protocol, name) for name in names}
    return about | {"settings": [asdict(each) for each in protocol.settings()], "hash": protocol.hash()}


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_shown, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _data(given: Sequence[str]) -> str | dict[str, str]:
    """Return the folders by the names of their datasets, or the one folder that has no name."""
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    return _pairs(given, "--data")


def _pairs(given: Sequence[str] | None, option: str) -> dict[str, str]:
    """Return the NAME=VALUE pairs of an option. Raises `ValueError` on anything else, and on a name given twice."""
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ValueError(f"{option} {escaped(text)}; want NAME=VALUE")
        if name in found:
            raise ValueError(f"{option} gives {escaped(name)} twice")
        found[name] = value
    return found


def _no_more(rest: Sequence[str], verb: str) -> None:
    if rest:
        raise ValueError(f"`vitbackbone evaluate {verb}` takes nothing more, got {escaped(rest[0])}")
