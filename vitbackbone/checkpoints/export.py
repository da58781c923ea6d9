"""Exporting a backbone to the layouts of timm, transformers and the authors, and to a directory for transformers."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import cast

from safetensors.torch import save_file
from torch import Tensor

from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.formats.changes import FLATTEN
from vitbackbone.checkpoints.huggingface import (
    CLASSES,
    read_config,
    read_preprocess,
    write_config,
    write_labels,
    write_preprocess,
    written_layout,
)
from vitbackbone.checkpoints.rules import HEADS, ConversionError, Rules, bind, revert
from vitbackbone.contract import BackboneModule
from vitbackbone.files import did_you_mean, publish
from vitbackbone.images import Preprocess
from vitbackbone.model import Pool, Resampling, ViT, ViTConfig

# Advice on settings that transformers fixes and other libraries set differently
REMEDIES = {
    "resampling": "load_backbone(..., positions='hf') resamples as transformers does",
    "crop_rounding": "backbone.preprocess = dataclasses.replace(backbone.preprocess, crop_rounding='down') crops as "
    "transformers does",
}


# How timm pools the models that these classes pool by CLS. The weights are the same.
TIMM_POOLS: dict[str, Pool] = {
    "DeiTModel": "prefix",
    "DeiTForImageClassification": "prefix",
    "DeiTForImageClassificationWithTeacher": "prefix",
    "DINOv3ViTModel": "mean",
}


def export_weights(backbone: BackboneModule, format: str, head: Mapping[str, Tensor] = {}) -> dict[str, Tensor]:
    """Return the parameters under the names and in the shapes of a checkpoint format.

    `format`: a key of `checkpoints.formats.FORMATS`, such as `"timm"`, `"dinov2"` or `"Dinov2Model"`.
    Hugging Face formats are named by the class that loads them.
    `head`: the classifier's parameters, as `Checkpoint.head` holds them.

    The position of CLS is zeros, because loading added it to the token. Zeros also fill parameters of the loading class
    on which no feature depends. These are the mask token, and the tanh layer that `ViTModel` puts on CLS. For a model
    with a text tower or a decoder, only the vision encoder is exported.
    Tensors may share memory with the backbone, like those of `state_dict`.

    Raises `ValueError` if the backbone is not a `ViT`, the format is unknown, or `head` has other names than a head's.
    Raises `ConversionError` that names the parameters which have no place in the format.
    """
    vit = _own(backbone)
    if format not in FORMATS:
        raise ValueError(_unknown("format", format, FORMATS))
    if stray := [name for name in head if not name.startswith(HEADS)]:
        raise ValueError(f"head has {', '.join(stray)}; want names under {' or '.join(HEADS)}")
    rules, (height, width) = bind(FORMATS[format], vit.config), vit.config.table_grid
    if height != width and any(rule.via is FLATTEN for rule in rules):
        raise ConversionError(
            f"pos_embed.table: {format} wants a square of positions, and the model has {height} x {width}"
        )
    weights = revert({**vit.state_dict(), **head}, rules)
    return weights | {key: value for key, value in _blanks(vit, rules).items() if key not in weights}


def save_pretrained(
    backbone: BackboneModule,
    directory: str | PathLike[str],
    architecture: str,
    head: Mapping[str, Tensor] = {},
    labels: Sequence[str] = (),
) -> None:
    """Write `config.json`, `preprocessor_config.json` and `model.safetensors` for a class of transformers. Its
    `from_pretrained` and `load_backbone` read them. Each file appears whole or not at all, `config.json` last.

    `architecture`: the class, such as `"Dinov2Model"` or `"ViTForImageClassification"`.
    `head`, `labels`: a classifier's parameters and class names, as `Checkpoint` holds them. Without labels,
    transformers numbers the classes.

    Loading the directory returns the same parameters, preprocessing and configuration, with these exceptions.
    A checkpoint does not keep `drop_path`, `indivisible`, or the resampling of a table that the model does not have.
    `crop_pct` may change to a value that crops the same pixels at the checkpoint's own size. DeiT and DINOv3 weights
    that pool as timm does pool by CLS, as in transformers. `export_weights` says which parameters are zeros.

    Raises `ValueError` if the class is unknown, cannot express a setting of the backbone, or does not fit the head or
    the labels. Raises `ConversionError` like `export_weights`.
    """
    vit = _own(backbone)
    if architecture not in CLASSES:
        raise ValueError(_unknown("architecture", architecture, CLASSES))
    written = vit.config
    if written.pool == TIMM_POOLS.get(architecture):
        written = replace(written, pool="cls")
    config, processor = write_config(written, architecture), write_preprocess(vit.preprocess)
    layout = written_layout(config)
    read, default = read_config(config)
    again = read_preprocess(processor, default).in_patches(vit.config.patch_size)
    if not any("projection.weight" in rule.targets for rule in FORMATS[layout]):  # the file has the setting even then
        read = replace(cast(ViTConfig, read), projection_dim=0)
    wrong = [
        *_differences("config", _lasting(written), _lasting(cast(ViTConfig, read))),
        *_differences("preprocess", _cutting(vit.preprocess), _cutting(again)),
    ]
    if wrong:
        raise ValueError(f"{architecture} cannot express this backbone:\n  " + "\n  ".join(wrong))

    _check_head(architecture, FORMATS[layout], head, labels)
    weights = export_weights(vit, layout, head)
    if head:
        config |= write_labels(tuple(labels), _num_classes(head))
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        publish(folder / "config.json") as config_file,
        publish(folder / "preprocessor_config.json") as processor_file,
        publish(folder / "model.safetensors") as weights_file,
    ):
        config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        processor_file.write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
        save_file(weights, weights_file, metadata={"format": "pt"})  # transformers 4 refuses a file without


def _own(backbone: BackboneModule) -> ViT:
    if not isinstance(backbone, ViT):
        raise ValueError(f"{backbone.spec.name} is a {type(backbone).__name__}; only a ViT can be exported")
    return backbone


def _blanks(backbone: ViT, rules: Rules) -> dict[str, Tensor]:
    """Return the zeros that the rules define for their sources."""
    weight, sizes = backbone.patch_embed.proj.weight, vars(backbone.config)
    return {
        source: weight.new_zeros([sizes[side] if isinstance(side, str) else side for side in rule.blank])
        for rule in rules
        if rule.written and rule.blank is not None
        for source in rule.sources
    }


def _lasting(config: ViTConfig) -> ViTConfig:
    """Reset the settings that are chosen at load, act only in training, or act on a table that the model lacks."""
    how = Resampling()
    if config.position != "none":
        how = replace(config.resampling, relative=how.relative)
    if config.relative_position == "table":
        how = replace(how, relative=config.resampling.relative)
    return replace(config, resampling=how, drop_path=0.0, indivisible="pad", mask_token=False)


def _cutting(preprocess: Preprocess) -> Preprocess:
    """Express the crop in pixels of the preprocessing's own size, because the files hold no fraction. If no half pixel
    occurs, the rounding does not matter."""
    size, resized = preprocess.crop, preprocess.scaled(preprocess.crop)
    even = preprocess.crop_mode == "squash" and not any((a - b) % 2 for a, b in zip(resized, size, strict=True))
    rounding = "down" if even else preprocess.crop_rounding
    return replace(preprocess, crop_pct=size[0] / resized[0], crop_rounding=rounding)


def _differences(name: str, ours: ViTConfig | Preprocess, theirs: ViTConfig | Preprocess) -> list[str]:
    """Return a line for each field that would not be loaded again."""
    return [
        f"{name}.{field.name}={mine!r}, where it has {other!r}"
        + (f"; {REMEDIES[field.name]}" if field.name in REMEDIES else "")
        for field in fields(ours)
        if (mine := getattr(ours, field.name)) != (other := getattr(theirs, field.name))
    ]


def _check_head(architecture: str, rules: Rules, head: Mapping[str, Tensor], labels: Sequence[str]) -> None:
    """Raise `ValueError` if the class has other classifiers, or another number of outputs than labels."""
    wanted = {target for rule in rules for target in rule.targets if target.startswith(HEADS)}
    if head.keys() != wanted:
        given = ", ".join(sorted(head)) or "none"
        raise ValueError(f"{architecture} has {', '.join(sorted(wanted)) or 'no classifier'}; got {given}")
    if labels and (not head or len(labels) != _num_classes(head)):
        outputs = f"{_num_classes(head)} classes" if head else "no classifier"
        raise ValueError(f"{len(labels)} labels for {outputs}")


def _num_classes(head: Mapping[str, Tensor]) -> int:
    return len(next(iter(head.values())))


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    return f"unknown {what} {name!r}{did_you_mean(name, known) or '.'} Want one of {', '.join(known)}"
