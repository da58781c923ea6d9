"""Settings of the documentation site. `make docs` builds it offline; a warning is an error."""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import evaluation_pages
import generated

import vitbackbone

project = "vitbackbone"
author = "the vitbackbone developers"
copyright = f"2026, {author}"
version = release = vitbackbone.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nitpicky = False
suppress_warnings = ["myst.strikethrough"]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}
add_module_names = False
default_role = "code"  # docstrings use Markdown's single backquotes

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_title = f"vitbackbone {version}"
html_show_sourcelink = False
html_theme_options = {
    "show_prev_next": True,
    "navigation_with_keys": False,
    "use_edit_page_button": False,
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": ["page-toc"],
}
html_sidebars = {"index": [], "start": [], "models": [], "contributing": []}


def mark_code(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Tell Sphinx that an indented block of a docstring is code, as it is in Markdown."""
    indented = False
    for i in reversed(range(len(lines))):
        if lines[i].startswith("    "):
            indented = True
        elif lines[i].strip():
            if indented and not lines[i + 1].strip():
                lines[i + 1 : i + 1] = ["", ".. code-block:: python"]
            indented = False


def list_parameters(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make a list item of each line that begins with parameters, such as "`name`: ", and of the lines after it."""
    found: list[str] = []
    in_item = False
    for line in lines:
        if re.match(r"`\w+`(, `\w+`)*: ", line):
            found += ["", f"- {line}"]
            in_item = True
        else:
            in_item = in_item and bool(line.strip())
            found.append(f"  {line}" if in_item else line)
    lines[:] = found


def skip_generated(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool:
    """Leave out the methods that scikit-learn adds to each estimator."""
    return skip or bool(re.fullmatch(r"set_\w+_request|get_metadata_routing", name))


def setup(app: Any) -> None:
    """Register the functions above with Sphinx."""
    app.connect("autodoc-process-docstring", mark_code)
    app.connect("autodoc-process-docstring", list_parameters)
    app.connect("autodoc-skip-member", skip_generated)


generated.write(Path(__file__).parent / "_generated")
evaluation_pages.write(Path(__file__).parent / "evaluate" / "protocols")
exclude_patterns.append("_generated/*.md")
