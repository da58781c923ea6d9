"""Reading the `config.json` of the vision towers that other models copied from CLIP."""

from vitbackbone.checkpoints.huggingface.records import Clip, Pair


class Git(Clip):
    """The vision tower of GIT."""

    patch_size: Pair = (16, 16)


class OwlVit(Clip):
    """The vision tower of OWL-ViT."""

    image_size: Pair = (768, 768)


class OwlV2(OwlVit):
    """The vision tower of OWLv2."""

    patch_size: Pair = (16, 16)


# The model types whose vision towers have CLIP's arithmetic and keys, and the schemas with their defaults
CLIP_KIN: dict[str, type[Clip]] = {
    "clipseg_vision_model": Clip,
    "altclip_vision_model": Clip,
    "chinese_clip_vision_model": Clip,
    "git_vision_model": Git,
    "owlvit_vision_model": OwlVit,
    "owlv2_vision_model": OwlV2,
}
