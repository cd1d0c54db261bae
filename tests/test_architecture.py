"""Who may import whom: from top to bottom, never up; and what a public signature may say."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ldvae

PACKAGE = Path(__file__).parents[1] / "ldvae"
BASICS = {"config", "errors"}
ENGINE = {"module", "backends", "likelihoods", "data"}
ALLOWED = {
    "__init__": {"_settings", "model", "errors", "programs", "pl", "simulate", "results", "sweep", "config"},
    "__main__": {"cli"},
    "cli": BASICS | {"steps", "results", "provenance", "distributed"},
    "steps": BASICS
    | {"model", "programs", "markers", "report", "pl", "io", "results", "demo", "simulate", "provenance", "likelihoods"}
    # The parts of the model, for the steps train and de.
    | {
        "names",
        "neighbors",
        "features",
        "methods",
        "rows",
        "train",
        "posterior",
        "differential",
        "module",
        "data",
        "devices",
        "progress",
        "distributed",
    },
    "report": BASICS | {"names", "methods", "pl", "results", "programs"},
    "pl": {"errors"},
    "sweep": BASICS | {"model", "posterior", "programs", "data", "devices"},
    "model": BASICS
    | ENGINE
    | {"train", "posterior", "differential", "storage", "programs", "rows", "arguments", "_settings"}
    | {"minified", "devices", "progress", "trainer", "distributed"},
    "minified": BASICS | ENGINE | {"posterior", "storage"},
    "trainer": BASICS | {"train", "arguments"},
    "progress": {"train"},
    "devices": {"errors", "arguments", "distributed"},
    "train": BASICS | ENGINE | {"distributed"},
    "posterior": BASICS | ENGINE,
    "differential": BASICS | ENGINE | {"posterior", "rows"},
    "storage": BASICS | ENGINE,
    "backends": BASICS | {"module", "likelihoods", "data", "distributed"},
    "module": BASICS | {"likelihoods", "data", "distributed"},
    "likelihoods": {"errors"},
    "distributed": {"errors"},
    "programs": BASICS | {"methods", "rows", "features"},  # what is an identifier of a gene
    "markers": BASICS | {"methods"},
    "methods": set(),
    "results": BASICS | {"io"},
    "data": BASICS | {"counts", "rows", "categories"},
    "rows": {"errors"},
    "categories": {"errors"},
    "arguments": {"errors", "likelihoods"},
    "_settings": {"errors"},
    "io": {"errors", "counts", "demo", "features", "names"},
    "features": {"errors", "rows"},
    "names": {"errors"},
    "neighbors": set(),
    "counts": {"errors"},
    "config": {"errors", "likelihoods", "names", "io"},  # names of the likelihoods; headers of the data
    "simulate": {"errors"},
    "demo": set(),
    "provenance": set(),
    "errors": set(),
}
# Whose public functions take no Any but as the values of a JSON object.
TYPED = {"model", "sweep", "simulate", "programs", "train", "posterior", "module", "likelihoods", "backends"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def layer(path: Path) -> str:
    """The module or package directly under ldvae that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path, source: str | None = None) -> set[str]:
    """Modules and packages directly under ldvae that a file imports, also inside its functions, also relatively."""
    package = ("ldvae", *path.relative_to(PACKAGE).parts[:-1])
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text() if source is None else source)):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            parts = [*base, *(node.module or "").split(".")] if node.module else list(base)
            if parts[:1] == ["ldvae"]:
                names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ldvae.")}
    return {name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_lies_below_it(path):
    assert imported(path) <= ALLOWED[layer(path)] | {layer(path)}


def test_the_layers_have_no_circle():
    def below(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        for other in ALLOWED[name] - {name}:
            below(other, (*above, name))

    for name in ALLOWED:
        below(name, ())


def test_the_drawing_of_the_house_has_every_module_above_what_it_may_import():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = text.split("## Modules")[1].split("```")[1].splitlines()
    drawn = {name: i for i, line in enumerate(lines) for name in re.findall(r"\w+", line[:36])}
    modules = ALLOWED.keys() - {"__init__", "__main__"}
    assert modules <= drawn.keys()
    # What stands side by side on several lines is one layer.
    up = {(one, other) for one in modules for other in ALLOWED[one] & modules if drawn[one] > drawn[other]}
    assert all("|" not in "".join(line[:36] for line in lines[drawn[b] : drawn[a] + 1]) for a, b in up), up


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from ..model import LinearSCVI", {"model"}),
        ("from .. import data", {"data"}),
        ("from . import qc", {"steps"}),
        ("def late():\n    from ..cli import main", {"cli"}),
        ("import ldvae.train", {"train"}),
        ("from ldvae import posterior", {"posterior"}),
    ],
)
def test_relative_and_late_imports_are_seen(source, found):
    assert imported(PACKAGE / "steps" / "qc.py", source) == found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_prints_or_parses_arguments(path):
    names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
    allowed = {"cli.py": {"print", "argparse"}, "model.py": {"print"}}  # scvi-tools' view_… methods print
    assert names & {"print", "argparse"} <= allowed.get(path.name, set())


def public_functions(path: Path) -> list[ast.FunctionDef]:
    """Functions and methods without a leading underscore, and constructors."""
    found, classes = [], [ast.parse(path.read_text())]
    for scope in classes:
        for node in scope.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes.append(node)
            elif isinstance(node, ast.FunctionDef) and (node.name == "__init__" or not node.name.startswith("_")):
                found.append(node)
    return found


@pytest.mark.parametrize("path", [path for path in MODULES if layer(path) in TYPED], ids=lambda path: path.name)
def test_public_signatures_say_what_they_take_and_give(path):
    for function in public_functions(path):
        taken = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        taken += [one for one in (function.args.vararg, function.args.kwarg) if one is not None]
        for argument in taken:
            if argument.arg == "ctx":  # torch has no public type for it
                continue
            said = ast.unparse(argument.annotation) if argument.annotation else ""
            assert "Any" not in said.replace("Mapping[str, Any]", ""), f"{function.name}({argument.arg}: {said})"
        assert not isinstance(function.returns, ast.Name) or function.returns.id != "Any", function.name


def test_parts_of_the_package_are_imported_when_they_are_asked_for():
    code = """
import sys, ldvae, ldvae.config
print(*sys.modules)
from ldvae import LinearSCVI
print(*sys.modules)
print(len([getattr(ldvae, name) for name in dir(ldvae)]) - len(ldvae.__all__))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    package, model, other_parts = done.stdout.splitlines()
    assert not set(package.split()) & {"torch", "scanpy", "anndata", "pandas", "matplotlib", "snakemake", "plotly"}
    # scipy.stats: a second and 45 MB.
    assert not set(model.split()) & {"scanpy", "matplotlib", "snakemake", "plotly", "scipy.stats"}
    assert other_parts == "0"
    assert {"LinearSCVI", "pl", "programs", "read_results", "simulate", "sweep"} <= set(ldvae.__all__)
    assert (PACKAGE / "py.typed").exists()


def test_a_config_is_planned_with_what_snakemake_brings_alone(tmp_path):
    (tmp_path / "counts.h5ad").write_text("")
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"numpy", "pandas", "anndata", "h5py", "scanpy", "torch", "scipy"}}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from ldvae.config import expand_checked
print(len(expand_checked({{"datasets": {{"a": {str(tmp_path / "counts.h5ad")!r}}}}}).datasets["a"].runs))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "5", done.stderr


def test_no_two_test_files_share_a_name():
    """Pytest imports test files by their name alone: a second one of the same name stops the whole run."""
    names = sorted(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert names == sorted(set(names))
