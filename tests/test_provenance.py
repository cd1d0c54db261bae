"""Versions are those of what is installed; the commit is that of the clone the code lies in, and of no other."""

import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from ldvae.provenance import commit, versions

ROOT = Path(__file__).parents[1]


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_of_a_clone_says_whether_the_code_was_changed_since(tmp_path):
    git(tmp_path, "init", "-q")
    for folder in ("ldvae", "config", "docs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "ldvae" / "code.py").write_text("1\n")
    (tmp_path / "docs" / "index.md").write_text("1\n")
    (tmp_path / "config" / "config.yaml").write_text("edited: false\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    git(tmp_path, "tag", "v1")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert len(head) == 40
    assert commit(tmp_path) == head
    (tmp_path / "config" / "config.yaml").write_text("edited: true\n")
    assert commit(tmp_path) == head
    (tmp_path / "docs" / "index.md").write_text("2\n")
    assert commit(tmp_path) == head
    (tmp_path / "ldvae" / "code.py").write_text("2\n")
    assert commit(tmp_path) == f"{head}-dirty"
    # Installed below it, the code is not that of the repository.
    (tmp_path / "site-packages").mkdir()
    assert commit(tmp_path / "site-packages") == ""


def test_an_archive_names_the_commit_that_it_was_made_of(tmp_path):
    (tmp_path / "clone").mkdir()
    shutil.copy(ROOT / ".git_archival.txt", tmp_path / "clone")
    shutil.copy(ROOT / ".gitattributes", tmp_path / "clone")
    assert commit(tmp_path / "clone") == ""  # neither a clone nor an archive: an sdist
    git(tmp_path / "clone", "init", "-q")
    git(tmp_path / "clone", "add", ".")
    git(tmp_path / "clone", "commit", "-q", "-m", "first")
    git(tmp_path / "clone", "archive", "--prefix", "archive/", "-o", str(tmp_path / "a.tar"), "HEAD")
    shutil.unpack_archive(tmp_path / "a.tar", tmp_path)
    assert commit(tmp_path / "archive") == git(tmp_path / "clone", "rev-parse", "HEAD")


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    assert commit(tmp_path) == ""  # git is there, and knows no repository
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(tmp_path) == ""


def test_only_installed_packages_have_a_version():
    found = versions(["numpy", "no-such-package"])
    assert found["numpy"] == metadata.version("numpy")
    assert "no-such-package" not in found
    assert found.get("commit") != ""
