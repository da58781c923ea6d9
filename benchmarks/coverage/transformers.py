"""What every model type of transformers that takes images does here: native, by the adapter, or refused and why.

Each type's model is built small and random, saved whole, loaded by `load_backbone`, and compared with the output of
its own image encoder. Each runs in a process of its own.
"""

import argparse
import copy
import importlib
import inspect
import json
import logging
import os
import re
import resource
import signal
import tempfile
import textwrap
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.coverage.tiny_configs import tiny
from vitbackbone.networks.transformers.input import feed_of
from vitbackbone.networks.transformers.layout import first_tensor
from vitbackbone.networks.transformers.parts import find_layers
from vitbackbone.networks.transformers.towers import config_of, find_towers

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
NO_ENCODER = (
    "takes only pixels",
    "takes only videos",
    "does not run on pixels alone",
)  # how the reasons of types without an image encoder end
TOLERANCE = 1e-5
SECONDS, BYTES = 90, 8 << 30  # limits of CPU time and of memory
PIXELS = {"pixel_values", "pixel_values_videos", "flattened_patches", "grid_thw"}
How = Literal["native", "adapter", "refused", "different", "not built"]


class FeedError(ValueError):
    """The encoder of a native family takes clips or tiles, which this sweep does not make."""


@dataclass(frozen=True)
class Row:
    """The outcome of one model type."""

    model_type: str
    how: How
    encoder: str = ""
    error: float | None = None  # max |a - b| / max |b| against the encoder's own output
    sizes: str = ""  # "any", or "native"
    reason: str = ""


def model_types() -> list[str]:
    """Return the model types that take images: a class with their config has pixels among its arguments.

    A type without an encoder of its own, and the parts of other types, count like any other.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return [name for name in CONFIG_MAPPING_NAMES if _mentions_pixels(name) and classes(name)]


def _mentions_pixels(model_type: str) -> bool:
    """Whether the source of a type's package has an argument for pixels, so that it is worth importing."""
    import transformers
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    package = Path(transformers.__file__).parent / "models" / model_type_to_module_name(model_type)
    return any(name in file.read_text() for file in package.glob("modeling_*.py") for name in PIXELS)


def classes(model_type: str) -> list[Any]:
    """Return the classes of a model type whose arguments have pixels, the base model first."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    config = CONFIG_MAPPING[model_type]
    base = MODEL_MAPPING_NAMES.get(model_type)
    package = importlib.import_module(config.__module__.replace(".configuration_", ".modeling_"))
    found = [each for each in vars(package).values() if getattr(each, "config_class", None) is config]
    found = [each for each in found if set(inspect.signature(each.forward).parameters) & PIXELS]
    return sorted(found, key=lambda each: each.__name__ != base and each.__name__ not in (base or ()))


def randomised(model: nn.Module) -> nn.Module:
    """Give every parameter and statistic a random value, so that a tensor that is dropped shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        tensors = [*model.named_parameters(), *(each for each in model.named_buffers() if "running_" in each[0])]
        for name, tensor in tensors:
            if tensor.is_floating_point() and tensor.numel():
                noise = torch.randn(tensor.shape, generator=generator)
                scaled = 0.05 * noise if tensor.ndim > 1 else 0.1 * noise + float(name.endswith("weight"))
                tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else scaled)
    return model.eval()


def tiny_model(model_type: str) -> Any:
    """Return a small random model of a type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(0)
    return randomised(classes(model_type)[0](tiny(CONFIG_MAPPING[model_type])))


def outcome(model_type: str) -> Row:
    """Return what a model type does here."""
    try:
        model = tiny_model(model_type)
    except Exception as error:
        return Row(model_type, "not built", reason=_line(error))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        try:
            backbone = _load(folder)
        except (ValueError, ImportError) as error:
            return Row(model_type, "refused", reason=_line(error).replace(f"{folder}/", ""))
    how: How = "adapter" if type(backbone).__name__ in ("TransformersBackbone", "ClipBackbone") else "native"
    try:
        encoder, error = compare(model, backbone, model_type)
    except FeedError as reason:
        return Row(model_type, how, reason=f"not compared here: {reason}")
    sizes = "native" if getattr(backbone, "sizes", True) is None else "any"
    if error is None or not error <= TOLERANCE:
        return Row(model_type, "different", encoder, error, sizes, f"loaded as {how}, and its output differs")
    return Row(model_type, how, encoder, error, sizes)


def _load(folder: str) -> Any:
    """Load a directory, and the first image encoder that the error names if there are several."""
    from vitbackbone import load_backbone

    try:
        return load_backbone(folder)
    except ValueError as error:
        named = re.findall("'([^']+)'", str(error).partition("by tower=")[2])
        if not named:
            raise
        return load_backbone(folder, tower=named[0])


def compare(model: Any, backbone: Any, model_type: str) -> tuple[str, float | None]:
    """Return the class of a model's image encoder, and the error of the backbone's output against its output.

    The error is the larger one of two sizes: the encoder's own, and a wider one if both accept it.
    """
    own = getattr(backbone.config, "tower", None)
    paths = find_towers(model) if own is None else [own]
    height, width = backbone.spec.image_size
    best: tuple[str, float | None] = ("", None)
    for path in paths:
        encoder = model.get_submodule(path)
        error = _compare_at((height, width), encoder, config_of(model, path), backbone, model_type)
        if error is not None and (best[1] is None or error < best[1]):
            best = type(encoder).__name__, error
            side = 4 * max(backbone.spec.strides)
            wider = _accepted((height + side, width + 2 * side), encoder, config_of(model, path), backbone, model_type)
            best = best[0], max(error, wider or 0.0)
    return best


def _accepted(size: tuple[int, int], encoder: Any, config: Any, backbone: Any, model_type: str) -> float | None:
    """Return the error at a size, or None if the backbone or the encoder refuses it."""
    if getattr(backbone, "sizes", True) is None:
        return None
    try:
        return _compare_at(size, encoder, config, backbone, model_type)
    except Exception:  # each encoder has its own errors for sizes that it does not accept
        return None


def _compare_at(size: tuple[int, int], encoder: Any, config: Any, backbone: Any, model_type: str) -> float | None:
    """Return the error of the output that agrees best at a size, or None if no shapes agree."""
    encoder = copy.deepcopy(encoder)  # a Swin of transformers keeps the windows of the last small map
    channels = backbone.channels[0]
    images = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = [backbone(images), *backbone.forward_layers(images, [backbone.spec.depth - 1], norm=False)]
    if hasattr(backbone, "encoder"):
        wanted = _run(encoder, backbone.encoder.feed(images), backbone)
    else:
        try:
            feed = feed_of(encoder, config, model_type, backbone.spec.image_size)
        except ValueError as error:
            raise FeedError(_line(error)) from error
        # An encoder that normalises by itself wants pixels from 0 to 1
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (backbone.preprocess.mean, backbone.preprocess.std))
        wanted = [each for given in (images, images * std + mean) for each in _run(encoder, feed(given), backbone)]
    errors = [error for ours in found for theirs in wanted if (error := _error(ours, theirs)) is not None]
    return min(errors, default=None)


@torch.no_grad()
def _run(encoder: Any, arguments: dict[str, Any], backbone: Any) -> list[Tensor]:
    """Return an encoder's own output, and its last block's output if the backbone's map comes from there."""
    wanted = _outputs(encoder(**arguments))
    adapter = getattr(backbone, "encoder", None)
    if adapter is not None and wanted and not adapter.first_stage:
        return wanted
    # A native map comes from the last block, before any merger
    blocks = find_layers(encoder)
    if adapter is not None and adapter.first_stage:
        blocks = find_layers(blocks[0])
    return [*wanted, *_last_block(encoder, arguments, blocks)]


def _outputs(result: Any) -> list[Tensor]:
    """Return an encoder's own output, and its last map if it is a list."""
    if isinstance(result, Tensor):
        return [result, result[-1]] if result.ndim == 4 else [result]  # BridgeTower stacks its blocks
    if isinstance(result, list | tuple):
        return [each for each in result if isinstance(each, Tensor)][-1:]
    own = getattr(result, "last_hidden_state", None)
    own = getattr(result, "feature_maps", None) if own is None else own
    own = own[-1] if isinstance(own, list | tuple) else own
    return [own] if isinstance(own, Tensor) else []


def _last_block(encoder: Any, arguments: dict[str, Any], blocks: list[nn.Module]) -> list[Tensor]:
    """Return the output of an encoder's last block."""
    taken: list[Any] = []
    if blocks:
        hook = blocks[-1].register_forward_hook(lambda _module, _given, out: taken.append(first_tensor(out)))
        encoder(**arguments)
        hook.remove()
    return [each for each in taken if each is not None]


def _error(ours: Any, theirs: Tensor) -> float | None:
    """Return max |a - b| / max |b|, or None if the shapes do not agree.

    Tokens that come in another order than the image's rows are compared as sorted numbers.
    """
    if theirs.shape == ours.patches.shape:
        return _relative(ours.patches, theirs)
    cls = [] if ours.cls is None else [ours.cls[:, None]]
    tokens = torch.cat([*cls, ours.registers, ours.tokens], dim=1)
    for mine in (tokens, ours.tokens):
        if mine.numel() == theirs.numel() and mine.shape[-1] in theirs.shape:
            direct = _relative(mine.flatten(), theirs.flatten())
            return min(direct, _relative(mine.flatten().sort().values, theirs.flatten().sort().values))
    return None


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def _line(error: Exception) -> str:
    text = " ".join((str(error) or type(error).__name__).split())
    return text if len(text) <= 300 else f"{text[:296]} ..."


def run(names: Iterable[str]) -> Iterator[Row]:
    """Yield the row of each type. Each runs in a process of its own, which may take 90 seconds of CPU time."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    for module in ("timm", "vitbackbone.checkpoints.load", "transformers.modeling_utils"):
        importlib.import_module(module)  # once, rather than in each process
    for name in names:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _answer(name, writing)
        os.close(writing)
        with os.fdopen(reading) as answer:
            text = answer.read()
        os.waitpid(child, 0)
        ended = Row(name, "refused", reason=f"it took more than {SECONDS} seconds of CPU time, or ran out of memory")
        yield Row(**json.loads(text)) if text else ended


def _answer(name: str, writing: int) -> None:
    """Write the row of a type, and end this process."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    signal.alarm(10 * SECONDS)  # of waiting
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    torch.set_num_threads(1)
    try:
        row = outcome(name)
    except BaseException as error:  # every model has its own errors, and the table holds them all
        row = Row(name, "different", reason=f"{type(error).__name__}: {_line(Exception(str(error)))}")
    with os.fdopen(writing, "w") as answer:
        json.dump(asdict(row), answer)
    os._exit(0)


# ---- the page ------------------------------------------------------------------------------------------------------

MEANINGS: dict[How, str] = {
    "native": "in this package's own Vision Transformer, or in timm's network of the same design",
    "adapter": "in the adapter over transformers",
    "refused": "refused, with the reason below",
    "different": "loaded, but its output differs: a fault here",
    "not built": "no small model of the type could be built, so that nothing is known",
}
LINE = 116  # characters of a line of the page


def page(rows: list[Row], minutes: float, versions: str) -> str:
    """Return the part of the page about transformers, as Markdown."""
    loaded = sum(row.how in ("native", "adapter") for row in rows)
    encoders = sum(not (row.how == "refused" and row.reason.endswith(NO_ENCODER)) for row in rows)
    counts = ["| outcome | types | |", "| --- | ---: | --- |"]
    counts += [f"| {how} | {sum(row.how == how for row in rows)} | {text} |" for how, text in MEANINGS.items()]
    share = 100 * loaded / max(encoders, 1)
    told = (
        f"{len(rows)} model types, tried in {minutes:.0f} minutes with {versions}. {encoders} of them contain an "
        f"image encoder, and {loaded} load, {share:.1f} %."
    )
    reasons = [f"- `{row.model_type}`: {row.how}: {row.reason}" for row in rows if row.reason]
    lines = ["| model type | outcome | encoder | sizes | error |", "| --- | --- | --- | --- | ---: |"]
    for row in sorted(rows, key=lambda row: row.model_type):
        error = "" if row.error is None else f"{row.error:.0e}" if row.error else "0"
        lines.append(f"| {row.model_type} | {row.how} | {row.encoder} | {row.sizes} | {error} |")
    parts = [textwrap.fill(told, LINE), "\n".join(counts), "\n".join(reasons), "\n".join(lines)]
    return "\n\n".join(part for part in parts if part)


def main(arguments: list[str] | None = None) -> None:
    """Run the types that are named and print their rows, or run all and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage.transformers", description=__doc__)
    parser.add_argument("types", nargs="*", help="model types; all by default")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="save rows there, and go on from those that it has")
    options = parser.parse_args(arguments)
    kept: Path | None = options.keep
    start = time.monotonic()
    lines = kept.read_text().splitlines() if kept and kept.exists() else []
    done = {row.model_type: row for row in (Row(**json.loads(line)) for line in lines)}
    names = options.types or model_types()
    for row in run(name for name in names if name not in done):
        done[row.model_type] = row
        line = json.dumps(asdict(row))
        if options.types:
            print(line, flush=True)
        if kept:
            with kept.open("a") as file:
                file.write(f"{line}\n")
    if not options.types:
        from benchmarks.parity import replace_between, versions  # it imports every oracle

        text = page([done[name] for name in names], (time.monotonic() - start) / 60, versions())
        replace_between(PAGE, "transformers", text)


if __name__ == "__main__":
    main()
