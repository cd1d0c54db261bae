"""The pages say what the code says: options, files, verbs, make targets and messages that they name exist."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from ldvae import pl, programs
from ldvae.config import SECTIONS
from ldvae.results import FILES
from ldvae.steps import VERBS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if not {"_build", "generated"} & set(path.parts)),
]
PAGES = [path for path in PAGES if path.name not in ("options.inc.md", "results.inc.md")]
FIELDS = {name: set(options.model_fields) for name, options in SECTIONS.items()}
# Files that the pages call by other people's names, or that are the reader's own.
OTHERS = {
    "adata.h5ad", "cells.csv", "cells.tsv", "counts.csv", "counts.h5ad", "features.tsv", "features.tsv.gz", "genes.tsv",
    "barcodes.tsv", "model.json", "partitions.yaml", "simulated.h5ad", "samplesheet.csv", "summary.json",
    "contrasts.tsv", "report.html",
}  # fmt: skip


def code(path: Path) -> list[str]:
    """Inline code of a page, and the lines of its fenced blocks."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.M | re.S)
    rest = re.sub(r"^```[^\n]*\n.*?^```", "", text, flags=re.M | re.S)
    return [*re.findall(r"(?<!`)`([^`]+)`(?!`)", rest), *(line for block in blocks for line in block.splitlines())]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_that_a_page_names_exist(path):
    wrong = []
    for section, key in re.findall(r"\b(\w+): \{?(\w+)\b", "\n".join(code(path))):
        known = FIELDS.get(section, set())
        # "select: threshold" names a key; "seeds: [0, 1]" is one.
        if known and key not in known and not key.isdigit():
            wrong.append(f"{section}: {key}")
    for block in re.findall(r"^```yaml\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S):
        for section, options in (yaml.safe_load(block) or {}).items():
            if section in FIELDS and isinstance(options, dict):
                wrong += [f"{section}: {key}" for key in options if key not in FIELDS[section]]
    assert not wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_page_names_are_written(path):
    known = {Path(file.path).name for file in FILES} | {name for file in FILES for name in file.contents} | OTHERS
    named = re.findall(
        r"(?<![\w*./{-])(?:[\w./{}-]+/)?([\w-]+\.(?:tsv\.gz|tsv|npz|svg|gmt|html))\b", "\n".join(code(path))
    )
    assert sorted(set(named) - known) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_verbs_and_make_targets_that_a_page_names_exist(path):
    text = "\n".join(code(path))
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    verbs = set(re.findall(r"(?:^|[`$&;] ?)ldvae ([a-z][\w-]*)", text, re.M))
    assert verbs <= set(VERBS)
    assert set(re.findall(r"(?:^|[`$&;] ?)make ([a-z][\w-]*)", text, re.M)) <= targets


def test_the_api_page_lists_every_public_function():
    text = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^   ([\w.]+)$", text, re.M))
    public = {name for module in (pl, programs) for name in module.__all__ if not name[0].isupper()}
    assert public - listed == set()
    assert {"LinearSCVI", "fit_sweep", "read_results", "simulate", "settings", "InputError"} <= listed


def test_messages_of_the_faq_are_those_of_the_code():
    said = []
    for path in sorted((ROOT / "ldvae").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                said.append("".join(map(str, parts)))
    texts = "\n".join(said)
    faq = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8").split("## Questions")[0]
    messages = re.findall(r"^\*(.+)\*$", faq, re.M)
    assert messages
    unknown = [
        part.strip()
        for message in messages
        if "Directory cannot be locked" not in message  # Snakemake's
        for part in re.split(r"…|\*, \*", message)
        if part.strip() and part.strip().strip("`") not in texts
    ]
    assert not unknown
