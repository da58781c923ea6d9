"""The text towers of C-RADIO's teachers, in whose spaces its adaptors put images (NVlabs/RADIO, siglip2_adaptor.py and
open_clip_adaptor.py).

The teachers' own repositories hold the towers; C-RADIO's `config.json` names the teachers.
"""

from pathlib import Path

from pydantic import Field

from vitbackbone.files import SHORT, Record, read_json
from vitbackbone.model import Cleaning

#    the authors' names of the models of teachers of the type "siglip2"
SIGLIP2 = {
    "siglip2-g-384": "google/siglip2-giant-opt-patch16-384",
    "siglip2-so400m": "google/siglip2-so400m-patch16-naflex",
}
#    open_clip's names of models and weights (open_clip, pretrained.py)
OPEN_CLIP = {
    ("ViT-H-14-378-quickgelu", "dfn5b"): "apple/DFN5B-CLIP-ViT-H-14-378",
    ("ViT-SO400M-14-SigLIP-384", "webli"): "timm/ViT-SO400M-14-SigLIP-384",
}


class _Teacher(Record):
    name: str
    type: str = ""
    model: str = ""
    pretrained: str | None = None


class _Arguments(Record):
    teachers: tuple[_Teacher, ...] = Field(default=(), max_length=1000)


class _Config(Record):
    args: _Arguments = _Arguments()


def find_teacher(file: Path, adaptor: str) -> tuple[str, Cleaning | None]:
    """Return the repository of a teacher's text tower. Also return the cleaning of its texts, if that differs from the
    repository's.

    `file`: C-RADIO's `config.json`. Raises `ValueError` if it names no such teacher, or one without texts.
    """
    teachers = {teacher.name: teacher for teacher in reversed(read_json(file, _Config).args.teachers)}
    if adaptor not in teachers:
        names = f"want one of {', '.join(map(SHORT.repr, sorted(teachers)))}" if teachers else "it names no teachers"
        raise ValueError(f"adaptor={adaptor!r}: {file} has no such teacher; {names}")
    teacher = teachers[adaptor]
    if teacher.type == "siglip2" and teacher.model in SIGLIP2:
        return SIGLIP2[teacher.model], "big_vision"
    repository = OPEN_CLIP.get((teacher.model, teacher.pretrained or "")) if teacher.type == "open_clip" else None
    if repository is None:
        raise ValueError(
            f"adaptor={adaptor!r}: no text tower is known for this teacher, type={SHORT.repr(teacher.type)} and "
            f"model={SHORT.repr(teacher.model)}"
        )
    return repository, None
