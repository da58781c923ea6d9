"""Building a network, and filling it with the tensors of a checkpoint by the rules of its format."""

import logging
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from vitbackbone.checkpoints.channels import VIT_KERNELS, inflate, kernels, preprocess_for, stored_channels
from vitbackbone.checkpoints.formats import FORMATS, TOWERS
from vitbackbone.checkpoints.open_clip_images import OpenClipDirectory
from vitbackbone.checkpoints.options import Options
from vitbackbone.checkpoints.other_sizes import at_size, resample_tables, trained_grid
from vitbackbone.checkpoints.resolve import Directory
from vitbackbone.checkpoints.rules import HEADS, ConversionError, State, bind, convert
from vitbackbone.checkpoints.shapes import Parts, settle
from vitbackbone.checkpoints.timm_directory import TimmDirectory
from vitbackbone.checkpoints.timm_names import timm_rules
from vitbackbone.checkpoints.towers import Taken, count_blocks, take
from vitbackbone.checkpoints.zoo import Entry
from vitbackbone.images import Preprocess
from vitbackbone.model import ViT, ViTConfig, make_vit
from vitbackbone.networks import FusedConfig, TimmBackbone, TimmConfig

Network = TypeVar("Network", ViT, TimmBackbone)
LOG = logging.getLogger("vitbackbone")


def build(config: ViTConfig | TimmConfig, entry: Entry, name: str) -> ViT | TimmBackbone:
    """Build the network of an entry, with untrained parameters."""
    if isinstance(config, TimmConfig):
        return TimmBackbone(config, _preprocess(config, entry), name)
    return make_vit(config, _preprocess(config, entry), name)


def _preprocess(config: ViTConfig | TimmConfig, entry: Entry) -> Preprocess:
    same = config.image_size == entry.config.image_size
    own = entry.preprocess if same else replace(entry.preprocess, image_size=config.image_size, unseen=(0, 0))
    return preprocess_for(own, config.channels)


def fill(
    found: Entry | Directory | TimmDirectory | OpenClipDirectory, name: str, state: State, options: Options, place: str
) -> tuple[ViT | TimmBackbone, dict[str, Tensor]]:
    """Return the backbone with a checkpoint's weights, and the parameters of its head."""
    timm_written = isinstance(found, TimmDirectory)
    if isinstance(found, TimmDirectory | OpenClipDirectory):
        found = found.entry()
    if isinstance(found, Entry) and found.classifier is not None:
        return _fill_by_name(found, name, state, options, place)
    if isinstance(found, Directory):
        entry, taken = found.find(state, options.tower, options.part)
    else:
        entry, must = found, found.format in TOWERS
        taken = take(state, FORMATS[found.format], options.tower, options.part, must)
        if timm_written and isinstance(entry.config, ViTConfig):
            blocks = count_blocks(taken.tensors, "", taken.rules)
            entry = replace(entry, config=settle(entry.config, taken.rules, taken.tensors, blocks, {}))
    config = options.apply(entry.at_other_sizes(options.positions))
    # A directory is a larger model as a rule; a file was given as the network's own
    log(place, taken.note, logging.DEBUG if isinstance(found, Directory) else logging.WARNING)
    log(place, taken.warning)
    if isinstance(config, TimmConfig):
        return _fill_timm(_build_timm(config, entry, name), config, entry, taken)
    assert isinstance(entry.config, ViTConfig)
    stored = stored_channels(config, VIT_KERNELS, taken.rules, taken.tensors, entry.config.channels)
    rules = bind(taken.rules, replace(config, channels=stored))
    config = replace(config, mask_token="mask_token" in Parts(rules, taken.tensors))
    grid = trained_grid(config, rules, taken.tensors)
    size = (grid[0] * config.patch_size, grid[1] * config.patch_size)
    if grid != config.grid and isinstance(found, Directory) and options.image_size is None:
        raise ConversionError(_two_sizes(config, size))
    with torch.device("meta"):
        backbone = make_vit(config, _preprocess(config, entry), name)
        expected = build(replace(config, image_size=size, channels=stored), entry, name).state_dict()
    parameters = convert(taken.tensors, rules, expected)
    if stored != config.channels:
        parameters = inflate(parameters, VIT_KERNELS, backbone.state_dict())
    if grid != config.grid:
        parameters = resample_tables(parameters, config, grid)
        height, width = config.image_size
        log(place, f"resampled the positions, trained at {size[0]} x {size[1]} pixels, to {height} x {width}")
    return _assign(backbone, parameters)


def _fill_by_name(
    entry: Entry, name: str, state: State, options: Options, place: str
) -> tuple[TimmBackbone, dict[str, Tensor]]:
    """Fill a network of timm, whose rules follow from its parameters' names."""
    backbone = _build_timm(options.apply(entry.at_other_sizes(options.positions)), entry, name)
    taken = take(state, timm_rules(backbone, entry.classifier or ()), options.tower, options.part, must=False)
    log(place, taken.note)
    assert isinstance(backbone.config, TimmConfig)
    return _fill_timm(backbone, backbone.config, entry, taken)


def _fill_timm(
    backbone: TimmBackbone, config: TimmConfig, entry: Entry, taken: Taken
) -> tuple[TimmBackbone, dict[str, Tensor]]:
    """Fill a network of timm from a checkpoint that was trained at its size, or at the name's.

    A network that is built again for each size keeps the tables of the name's size, and resamples them when it runs.
    """
    native, size = entry.config, config.image_size
    assert isinstance(native, TimmConfig)
    try:
        return _fill_timm_at(backbone, config, entry, taken)
    except ConversionError as error:
        if not config.rebuild or native.image_size == size:
            raise
        own = at_size(config, native.image_size)
        assert isinstance(own, TimmConfig)
        try:
            filled, head = _fill_timm_at(_build_timm(own, entry, backbone.spec.name), own, entry, taken)
        except ConversionError:
            raise error from None
        filled.preprocess = replace(filled.preprocess, image_size=size, unseen=(0, 0))
        filled.spec = replace(filled.spec, image_size=size)
        note = f"kept the positions, trained at {_by(native.image_size)} pixels; images of {_by(size)} resample them"
        log(filled.spec.name, note)
        return filled, head


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _fill_timm_at(
    backbone: TimmBackbone, config: TimmConfig, entry: Entry, taken: Taken
) -> tuple[TimmBackbone, dict[str, Tensor]]:
    """Fill a network of timm from a checkpoint of its own number of channels, or of RGB."""
    wanted, names = backbone.state_dict(), kernels(backbone)
    assert isinstance(entry.config, TimmConfig)
    stored = stored_channels(config, names, taken.rules, taken.tensors, entry.config.channels)
    if stored == config.channels:
        return _assign(backbone, convert(taken.tensors, taken.rules, wanted))
    expected = _build_timm(replace(config, channels=stored), entry, backbone.spec.name).state_dict()
    return _assign(backbone, inflate(convert(taken.tensors, taken.rules, expected), names, wanted))


def _build_timm(config: ViTConfig | TimmConfig, entry: Entry, name: str) -> TimmBackbone:
    with torch.device("meta"):
        backbone = build(config, entry, name)
    assert isinstance(backbone, TimmBackbone)
    return backbone


def _assign(backbone: Network, parameters: dict[str, Tensor]) -> tuple[Network, dict[str, Tensor]]:
    """Give a network its parameters. Return the network and the parameters of the head."""
    head = {key: parameters.pop(key) for key in list(parameters) if key.startswith(HEADS)}
    for name, wanted in backbone.state_dict().items():
        if name in parameters and parameters[name].shape != wanted.shape:
            given, asked = (" x ".join(map(str, each.shape)) for each in (parameters[name], wanted))
            raise ConversionError(
                f"the checkpoint does not fit:\n  {name} is {given} and {asked} for this image_size, and no rule "
                "resamples it; load without image_size"
            )
    backbone.load_state_dict(parameters, assign=True)
    return backbone.eval(), head


def _two_sizes(config: ViTConfig | TimmConfig | FusedConfig, size: tuple[int, int]) -> str:
    """Say that a directory's settings and weights have different sizes."""
    (height, width), (rows, columns) = config.image_size, size
    return (
        f"the checkpoint does not fit:\n  image_size is {height} x {width} in the settings, and the weights have "
        f"positions for {rows} x {columns}; load with image_size=({rows}, {columns}) to keep these positions"
    )


def log(place: str, note: str, level: int = logging.WARNING) -> None:
    """Write a note about the files at `place` to the log "vitbackbone", if there is one."""
    if note:
        LOG.log(level, "%s: %s", place, note)
