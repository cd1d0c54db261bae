"""Who may import whom: from top to bottom, never up."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ldvae"
BASICS = {"config", "errors"}
ALLOWED = {
    "cli": BASICS | {"provenance"},  # it imports steps by name, when they are asked for
    "steps": BASICS
    | {"steps", "model", "programs", "markers", "report", "io", "demo", "simulate", "provenance"}
    | {"train", "posterior", "module", "data"},  # the parts of the model, for the step train
    "report": BASICS | {"report"},
    "sweep": BASICS | {"model", "posterior", "programs", "data"},
    "model": BASICS
    | {"train", "posterior", "differential", "storage", "programs", "data", "module", "kernels", "rows"},
    "train": BASICS | {"module", "data", "kernels"},
    "posterior": BASICS | {"module", "data", "kernels"},
    "differential": BASICS | {"module", "data", "posterior", "rows"},
    "storage": BASICS | {"module", "data"},
    "module": BASICS | {"likelihoods", "kernels", "data"},
    "programs": BASICS | {"programs"},
    "markers": BASICS,
    "data": BASICS | {"counts"},
    "io": BASICS | {"counts", "demo"},
    "config": {"errors"},
    "counts": {"errors"},
    "rows": {"errors"},
    "kernels": {"kernels", "errors"},
    "likelihoods": {"errors"},
    "simulate": {"errors"},
    "demo": set(),
    "provenance": set(),
    "errors": set(),
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)


def imported(path: Path) -> set[str]:
    """Modules and subpackages of ldvae that a file imports, also inside its functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ldvae":
            parts = node.module.split(".")[1:]
            names |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ldvae.")}
    return {name for name in names if name not in ("__version__", "LinearSCVI", "InputError")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_lies_below_it(path):
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert imported(path) <= ALLOWED[layer]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_prints_or_parses_arguments(path):
    names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
    allowed = {"cli.py": {"print", "argparse"}, "model.py": {"print"}}  # scvi-tools' view_… methods print
    assert names & {"print", "argparse"} <= allowed.get(path.name, set())


def test_importing_the_package_and_its_config_is_light():
    code = "import sys, ldvae, ldvae.config; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & {"torch", "scanpy", "anndata", "pandas", "matplotlib", "snakemake", "plotly"}


def test_importing_the_model_does_not_import_scanpy():
    code = "import sys; from ldvae import LinearSCVI; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & {"scanpy", "matplotlib", "snakemake", "plotly"}
