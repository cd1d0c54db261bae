"""The workflow as a module of another one: from a clone, from an installed package and from a tag.

Snakemake runs as in an environment with nothing but its own packages, without ldvae.
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from workplace import ROOT, quick_stubs, refused_calls, write_module

pytestmark = pytest.mark.thorough

# Snakemake's own packages alone. Of ldvae, only what the workflow brings itself.
BARE = """
import json
import os
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        if package == "ldvae":
            for finder in sys.meta_path:
                if type(finder).__name__ == "LdvaeOfSource" and (spec := finder.find_spec(name)):
                    return spec
        if package in ("ldvae", "torch", "anndata", "h5py", "numba", "scipy", "scanpy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
import snakemake.cli

for said, *arguments in json.loads(sys.argv[1]):
    if (child := os.fork()) == 0:  # Snakemake's import takes longer than the call
        for own in (1, 2):
            os.dup2(os.open(said, os.O_RDWR | os.O_CREAT | os.O_APPEND), own)
        sys.argv = ["snakemake", *arguments]
        snakemake.cli.main(arguments)
        sys.exit()
    if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit(code)
"""
LIBRARY = shutil.ignore_patterns("__pycache__", ".snakemake")


def clone(folder):
    return ROOT / "workflow" / "Snakefile", str(ROOT)


def package(folder):
    """The files as the wheel has them, in the site-packages of another environment."""
    inside = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    shutil.copytree(ROOT / "ldvae", folder / "ldvae", ignore=LIBRARY)
    for source, place in inside["force-include"].items():
        shutil.copytree(ROOT / source, folder / place, ignore=LIBRARY)
    (folder / "ldvae-1.2.3.dist-info").mkdir()
    return folder / "ldvae" / "workflow" / "Snakefile", "ldvae==1.2.3"


def tag(folder):
    for name in ("ldvae", "workflow", "envs"):
        shutil.copytree(ROOT / name, folder / name, ignore=LIBRARY)
    git = ["git", "-C", folder, "-c", "user.name=x", "-c", "user.email=x@localhost", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "All"], ["tag", "v1.2.3"]):
        subprocess.run([*git, *command], check=True)
    shutil.rmtree(folder / "workflow")
    return f"git+file://{folder}/workflow/Snakefile@v1.2.3", f"git+file://{folder}@v1.2.3"


@pytest.mark.parametrize("origin", [clone, package, tag])
def test_a_module_with_a_prefix_runs_to_the_report(tmp_path, origin):
    (tmp_path / "origin").mkdir()
    snakefile, for_pip = origin(tmp_path / "origin")
    place = tmp_path / "my work"
    place.mkdir()
    (tmp_path / "counts").write_text("counts")
    write_module(place, snakefile, counts=tmp_path / "counts")
    (tmp_path / "bare.py").write_text(BARE)
    environment = quick_stubs(tmp_path / "bin")
    environment.pop("PYTHONPATH", None)

    said = [tmp_path / name for name in ("first", "second", "forced")]
    more = [[], [], ["--dry-run", "--forcerun", "mine_select"]]
    calls = [[str(path), "--cores", "2", *arguments] for path, arguments in zip(said, more, strict=True)]
    command = [sys.executable, tmp_path / "bare.py", json.dumps(calls)]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + "".join(path.read_text() for path in said if path.exists())
    assert {path.name for path in place.iterdir()} == {
        ".snakemake",
        "Snakefile",
        "prepared",
        "programs",
        "summary.txt",
    }
    assert (place / "summary.txt").read_text().splitlines()[-1] == for_pip
    first, again, planned = (path.read_text() for path in said)
    assert re.search(r"^Finished after .*: 1 dataset\.$", first, re.M)
    assert "Nothing to be done" in again
    rules = set(re.findall(r"^(?:local)?rule (\w+):", planned, re.M))
    assert {"mine_select", "mine_programs", "mine_annotate", "mine_report", "mine_index", "summary"} <= rules
    assert "mine_train" not in rules
    assert list(refused_calls(environment)) == []
