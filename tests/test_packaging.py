"""What is released: one version everywhere, and a wheel with all that the workflow needs."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_files_that_cannot_read_the_tag_name_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    pipeline = re.search(r"version\s*= '([^']+)'", (ROOT / "nextflow.config").read_text())[1]
    assert citation == pipeline
    assert f'default="{citation}"' in (ROOT / "recipes" / "ldvae" / "recipe.yaml").read_text()
    # A clone without tags is not older than what was released.
    released = f"## [{citation}]" in (ROOT / "CHANGELOG.md").read_text()
    fallback = Version(PYPROJECT["tool"]["hatch"]["version"]["fallback-version"])
    assert fallback.is_devrelease
    assert fallback > Version(citation) if released else fallback.base_version == citation


def test_the_pinned_versions_can_be_installed_together():
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    pinned = {canonicalize_name(one.name): one for one in (Requirement(line) for line in lines if line)}
    version = {name: next(iter(one.specifier)).version for name, one in pinned.items()}
    oldest = f"{sys.version_info.major}.{sys.version_info.minor}.0"  # Debian 12 has 3.11.2
    conflicts = []
    for name, one in pinned.items():
        try:
            found = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        if found.version != version[name]:  # nothing here tells what the pinned version needs
            continue
        python = found.metadata.get("Requires-Python", "")
        if not SpecifierSet(python).contains(oldest):
            conflicts.append(f"{name} needs Python {python}, which leaves out {oldest}")
        for need in map(Requirement, found.requires or []):
            other = canonicalize_name(need.name)
            applies = any(not need.marker or need.marker.evaluate({"extra": extra}) for extra in ("", *one.extras))
            if applies and other in version and not need.specifier.contains(version[other], prereleases=True):
                conflicts.append(f"{name} needs {need}, pinned is {version[other]}")
    assert not conflicts


@pytest.fixture
def project(tmp_path: Path):
    """A repository of one commit with the files that decide the version."""
    pytest.importorskip("hatch_vcs")
    folder = tmp_path / "project"
    (folder / "ldvae").mkdir(parents=True)
    for name in ("pyproject.toml", ".git_archival.txt", ".gitattributes", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments], check=True)


def built_version(folder: Path) -> str:
    """Version of a wheel that is built in a folder."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "version"], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def archive_of(folder: Path, commit: str) -> Path:
    """What `git archive` makes of a commit, unpacked; the zip of a forge is the same."""
    made = folder.parent / f"archive of {commit}"
    git(folder, "archive", "-o", str(made.with_suffix(".tar")), commit)
    shutil.unpack_archive(made.with_suffix(".tar"), made)
    return made


def test_without_any_tag_the_version_is_the_next_one(project):
    next_version = PYPROJECT["tool"]["hatch"]["version"]["fallback-version"]
    assert built_version(project) == next_version.replace("dev0", "dev1")  # and its number of commits
    assert built_version(archive_of(project, "HEAD")) == next_version
    shutil.copytree(project, project.parent / "copy", ignore=shutil.ignore_patterns(".git"))
    assert built_version(project.parent / "copy") == next_version


def test_with_a_tag_the_version_is_read_off_it(project):
    git(project, "tag", "v7.8.0")
    git(project, "commit", "-q", "--allow-empty", "-m", "second")
    assert built_version(project) == "7.8.1.dev1"
    assert built_version(archive_of(project, "v7.8.0")) == "7.8.0"
    assert built_version(archive_of(project, "HEAD")) == "7.8.1.dev1"
    # An sdist keeps what it was built as.
    sdist = project.parent / "sdist"
    shutil.copytree(project, sdist, ignore=shutil.ignore_patterns(".git"))
    (sdist / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: ldvae\nVersion: 7.8.0\n")
    assert built_version(sdist) == "7.8.0"


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
