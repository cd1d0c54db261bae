"""The documentation site: `make docs` builds it into docs/_build/html, with warnings as errors."""

import copy
import inspect
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import get_args

from myst_nb.core import render
from pydantic_core import PydanticUndefined

from ldvae import results
from ldvae.config.document import summary
from ldvae.config.options import SECTIONS

HERE = Path(__file__).parent

project = "ldvae"
author = "The ldvae authors"
copyright = author
version = release = installed_version("ldvae")

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "reference/*.inc.md"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Tutorials run at every build; one that fails, or takes longer than this many seconds per cell, fails the build.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 1800  # seconds a cell; the workflow tutorial runs the whole workflow, on a busy machine too
nb_merge_streams = True

autosummary_generate = True
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_validation_checks = {"GL06", "GL07", "GL10", "SS01", "PR01", "PR02", "RT03"}
numpydoc_validation_exclude = {
    r"\.__init__$",
    r"\.(count|index)$",  # of tuples
    r"\.(?!LinearSCVI$)[A-Z]\w+$",  # results: their fields have comments
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "sphinx_book_theme"
html_title = "ldvae"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"show_navbar_depth": 1, "show_toc_level": 2, "home_page_in_toc": True}


#: A table whose rows become paragraphs on a phone (_static/site.css).
STACKED = (":::{table}", ":class: stacked", "")


def cell(text: object) -> str:
    """Text for a cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def merge_streams(outputs: list) -> list:
    """The outputs of a cell, the pieces of each of its streams joined as they came.

    IPython passes on what %%bash prints in pieces of 100 bytes, and myst-nb's own function ends each with a line break.
    """
    merged: list = []
    streams: dict = {}
    for output in outputs:
        if output["output_type"] != "stream":
            merged.append(output)
        elif output["name"] in streams:
            streams[output["name"]]["text"] += output["text"]
        else:
            streams[output["name"]] = copy.copy(output)
            merged.append(streams[output["name"]])
    return merged


render.coalesce_streams = merge_streams


def kind(annotation: object) -> str:
    """How the values of an option are called: its choices, or its type."""
    choices = get_args(annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        return ", ".join(f"`{choice}`" for choice in choices)
    text = inspect.formatannotation(annotation, base_module="ldvae.config.options")
    for long, short in {"Annotated[": "", "typing.": "", "NoneType": "None"}.items():
        text = text.replace(long, short)
    text = text.split(", FieldInfo(")[0].split(", Field(")[0]
    return f"`{text.strip()}`"


def default(value: object) -> str:
    """A default as it stands in config.yaml."""
    if value is PydanticUndefined:
        return "required"
    return "`null`" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def write_reference() -> None:
    """Write the tables of options and of result files from the code that defines them."""
    lines = []
    for section, options in SECTIONS.items():
        lines += [
            f"## {section}",
            "",
            summary(options),
            "",
            *STACKED,
            "| option | default | values | meaning |",
            "|---|---|---|---|",
        ]
        for name, field in options.model_fields.items():
            columns = (f"`{name}`", default(field.default), kind(field.annotation), field.description)
            lines.append(f"| {' | '.join(map(cell, columns))} |")
        lines += [":::", ""]
    (HERE / "reference" / "options.inc.md").write_text("\n".join(lines), encoding="utf-8")

    lines = [*STACKED, "| file | what it holds | written by | read by |", "|---|---|---|---|"]
    lines += [
        f"| `{file.path}` | {cell(file.holds)} | `{file.writer}` | {', '.join(f'`{verb}`' for verb in file.readers)} |"
        for file in results.FILES
    ]
    lines.append(":::")
    (HERE / "reference" / "results.inc.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


write_reference()
