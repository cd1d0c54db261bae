"""The pages say what the code says: options, files, verbs, make targets and messages that they name exist."""

import ast
import importlib.util
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


def strings_of_the_code() -> list[str]:
    """Every string constant of the package; what an f-string computes is a NUL in it."""
    found = []
    for path in sorted((ROOT / "ldvae").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                found.append("".join(map(str, parts)))
    return found


def said_in_one(message: str, strings: list[str]) -> bool:
    """Whether one string holds all words of a message, in their order; … stands for what differs."""
    parts = [re.escape(part.strip()) for part in message.split("…") if part.strip()]
    return any(re.search("[^\n]*?".join(parts), text) for text in strings)


# Of other programs: Snakemake, Python, the kernel, Slurm.
OF_OTHERS = (
    "Directory cannot be locked", "No space left on device", "Read-only file system", "sbatch: error: ",
    "Requested node configuration", "FileNotFoundError: ", "UnicodeDecodeError: ",
)  # fmt: skip


def test_messages_of_the_faq_are_those_of_the_code():
    strings = strings_of_the_code()
    faq = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8").split("## Questions")[0]
    messages = re.findall(r"(?<![*\w])\*([^*]+)\*(?!\*)", faq)
    assert len(messages) > 5
    assert [one for one in messages if not one.startswith(OF_OTHERS) and not said_in_one(one, strings)] == []


def test_messages_of_the_cluster_page_are_those_of_the_code():
    strings = strings_of_the_code()
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    rows = page.split("| what is seen | why |")[1].split("\n\n")[0].splitlines()[2:]
    messages = [one for row in rows for one in re.findall(r"`([^`]+ [^`]+)`", row.split(" | ")[0])]
    assert len(messages) > 3
    assert [one for one in messages if not one.startswith(OF_OTHERS) and not said_in_one(one, strings)] == []


def test_the_cluster_page_says_what_jobs_ask_for():
    asked = yaml.safe_load((ROOT / "workflow" / "resources.yaml").read_text())
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    line = r"(\d+) \+ ([\d.]+) x"
    told = re.findall(rf"^\| (\w+) \| [^|]+ \| {line}(?: or {line})? \|", page, re.M)
    assert len(told) > 5
    for verb, *lines in told:
        expected = [*asked[verb]["mem_mb"], *asked[verb].get("mem_mb_large", [])]
        assert [float(number) for number in lines if number] == expected, verb


def test_what_a_cell_prints_in_pieces_is_shown_as_it_was_printed():
    pytest.importorskip("myst_nb")
    spec = importlib.util.spec_from_file_location("conf", ROOT / "docs" / "conf.py")
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    pieces = [{"output_type": "stream", "name": "stdout", "text": text} for text in ("one line in ", "two\n", "next\n")]
    assert [output["text"] for output in conf.merge_streams(pieces)] == ["one line in two\nnext\n"]
    assert conf.render.coalesce_streams is conf.merge_streams


def test_the_code_of_a_tutorial_is_what_its_reader_sees():
    spec = importlib.util.spec_from_file_location("run_page", ROOT / "docs" / "run_page.py")
    run_page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run_page)
    for path in sorted((ROOT / "docs" / "tutorials").glob("*.md")):
        cells = run_page.code_of(path.read_text(encoding="utf-8"))
        assert len(cells) > 5
        assert not any(cell.startswith(":") or "OMP_NUM_THREADS" in cell for cell in cells)  # options, hidden cells
    workflow = run_page.code_of((ROOT / "docs" / "tutorials" / "workflow.md").read_text(encoding="utf-8"))
    assert workflow[0] == "%%bash\nldvae init my-project\nls my-project\n"
