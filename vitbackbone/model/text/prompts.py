"""Prompts: sentences around the name of a class."""

from collections.abc import Sequence

PROMPT = "a photo of a {}."  # Radford et al. 2021, section 3.1.4


def fill(templates: str | Sequence[str], label: str) -> list[str]:
    """Return a sentence for each template, with the label in place of `{}`.

    Raises `ValueError` if there is no template, or if one does not hold `{}` exactly once.
    """
    templates = [templates] if isinstance(templates, str) else list(templates)
    if not templates:
        raise ValueError("there is no template; want at least one, such as 'a photo of a {}.'")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"the template {template!r}; want one {{}} where the label goes, as in {PROMPT!r}")
    return [template.replace("{}", label) for template in templates]
