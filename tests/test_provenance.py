"""Versions are those of what is installed; the commit is that of the clone the code lies in, and of no other."""

import subprocess
from importlib import metadata
from pathlib import Path

from ldvae.provenance import commit, versions


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
