"""A folder to work in."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ldvae.config import commented_config
from ldvae.errors import InputError
from ldvae.steps.init import init


def test_a_new_folder_holds_the_commented_config_and_the_profiles(tmp_path):
    init(tmp_path / "my project")
    written = tmp_path / "my project"
    assert (written / "config" / "config.yaml").read_text() == commented_config()
    assert yaml.safe_load((written / "slurm" / "config.v9+.yaml").read_text())["executor"] == "slurm"


def test_nothing_of_the_users_is_replaced(tmp_path):
    (tmp_path / "Snakefile").write_text("mine")
    with pytest.raises(InputError, match="has Snakefile already"):
        init(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["Snakefile"]
    assert (tmp_path / "Snakefile").read_text() == "mine"


@pytest.mark.thorough
def test_snakemake_plans_the_demo_in_it(tmp_path):
    init(tmp_path)
    command = [sys.executable, "-m", "snakemake", "-n", "--cores", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "results/pbmc68k/report.html" in done.stdout
    assert not (Path(tmp_path) / "results").exists()
