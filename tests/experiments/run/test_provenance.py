"""Commit and changes of a real repository."""

import subprocess
from pathlib import Path

import pytest

from beyondpixel.experiments.run import provenance


def test_commit_and_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True, text=True).stdout

    file = tmp_path / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(file))
    file.write_text("lr = 0.1\n")
    assert (provenance.git_commit(), provenance.uncommitted_changes()) == (None, "")  # no repository
    git("init")
    assert provenance.git_commit() is None  # not tracked
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert (provenance.git_commit(), provenance.uncommitted_changes()) == (commit, "")
    file.write_text("lr = 0.2  # λ\n")
    assert provenance.git_commit() == f"{commit}-dirty"
    assert provenance.uncommitted_changes().splitlines()[-2:] == ["-lr = 0.1", "+lr = 0.2  # λ"]
    patch = tmp_path / "changes.diff"
    patch.write_text(provenance.uncommitted_changes(), encoding="utf-8")
    git("stash")
    git("apply", "changes.diff")
    assert file.read_text() == "lr = 0.2  # λ\n"
