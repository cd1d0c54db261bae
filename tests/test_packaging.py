"""What is released: one version everywhere, and a wheel with all that the workflow needs."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_files_that_cannot_read_the_tag_name_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    pipeline = re.search(r"version\s*= '([^']+)'", (ROOT / "nextflow.config").read_text())[1]
    assert citation == pipeline
    fallback = PYPROJECT["tool"]["hatch"]["version"]["fallback-version"]
    assert fallback.startswith(citation)


def test_the_conda_recipe_has_the_requirements_of_the_package():
    recipe = yaml.safe_load((ROOT / "recipes" / "ldvae" / "recipe.yaml").read_text())
    names = {"torch": "pytorch", "matplotlib": "matplotlib-base", "igraph": "python-igraph"}

    def of(requirements):
        found = {}
        for line in requirements:
            if ";" in line:  # of one Python: conda has a build of each version for each
                continue
            name, limits = re.match(r"([\w-]+)\s*(.*)", line.split("#")[0].strip()).groups()
            found[names.get(name, name)] = limits.replace(" ", "")
        return found

    expected = of(PYPROJECT["project"]["dependencies"])
    library, workflow = recipe["outputs"]
    run = of(library["requirements"]["run"])
    assert run.pop("python") == PYPROJECT["project"]["requires-python"]
    assert run == expected
    expected = of(PYPROJECT["project"]["optional-dependencies"]["workflow"])
    run = of(workflow["requirements"]["run"][1:])  # after the library itself
    assert run == expected


def test_files_without_git_take_the_version_that_they_are_told():
    """As an image and a conda package are made."""
    for text in (
        (ROOT / "containers" / "Containerfile").read_text(),
        (ROOT / "containers" / "apptainer.def").read_text(),
        (ROOT / "recipes" / "ldvae" / "recipe.yaml").read_text(),
    ):
        assert re.search(r"\bSETUPTOOLS_SCM_PRETEND_VERSION[=:]", text)  # hatch-vcs reads no name of a package


def test_the_wheel_brings_the_workflow_its_environments_and_profiles():
    inside = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    used = {
        line.split('"')[1].removeprefix("../../").split("/")[0]
        for path in (ROOT / "workflow" / "rules").glob("*.smk")
        for line in path.read_text().splitlines()
        if line.strip().startswith('"../../')
    }
    assert used <= set(inside)
    assert {"workflow", "slurm", "workstation"} <= set(inside)
    assert all((ROOT / name).is_dir() for name in inside)
    assert (ROOT / "ldvae" / "py.typed").exists()
