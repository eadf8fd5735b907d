"""The version names the commit of a checkout, as git does, and of two versions the older one is known."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest

from tests.desktop.test_doctor import neighbour
from together import __version__
from together.checkout import ROOT, SHORT, Release, own_time, own_version
from together.cluster_types import NodeState
from together.head.versions import version_notes
from together.view import NoteKind


def test_the_version_has_the_commit() -> None:
    git = ["git", "rev-parse", f"--short={SHORT}", "HEAD"]
    done = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    commit = f"+{done.stdout.strip()}" if done.returncode == 0 else ""
    assert own_version() == __version__ + commit


def test_the_time_is_the_commit_s() -> None:
    git = ["git", "log", "-1", "--format=%ct"]
    done = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    assert own_time() == (int(done.stdout) if done.returncode == 0 else 0)


OLD, NEW = Release("0.1.0+0123456", 1_700_000_000), Release("0.1.0+abcdef0", 1_800_000_000)
PAIRS = [
    (OLD, NEW, True),
    (NEW, OLD, False),
    (OLD, OLD, False),
    (replace(OLD, made=0), NEW, False),  # nobody knows
    (OLD, replace(NEW, made=0), False),
    (replace(NEW, version="0.0.9"), OLD, True),  # a number says more than a time
    (Release("0.9.0", 0), Release("0.10.0", 0), True),
    (Release("<b>x</b>", 0), NEW, False),
    (Release("9.²", 1), NEW, True),  # no number: by the time
]


@pytest.mark.parametrize(("one", "other", "older"), PAIRS)
def test_which_of_two_is_older(one: Release, other: Release, older: bool) -> None:
    assert one.is_older(other) is older


def test_a_machine_of_another_version_is_named_with_what_to_do() -> None:
    here = Release("0.1.0+5555555", 1_750_000_000)
    nodes = [replace(neighbour("mini", version=other.version), made=other.made) for other in (OLD, NEW, here)]
    nodes += [neighbour("silent", version=""), neighbour("lost", NodeState.FAILED, version="0.0.1")]
    nodes += [neighbour("unknown", version="0.1.0+7777777")]
    older, newer, unknown = version_notes(nodes, here)
    assert {note.kind for note in (older, newer, unknown)} == {NoteKind.VERSION}
    assert str(older.text).startswith("mini runs an older together, 0.1.0+0123456 where this app is 0.1.0+5555555; ")
    assert str(newer.text).startswith("mini runs a newer together, 0.1.0+abcdef0 where this app is 0.1.0+5555555; ")
    assert str(unknown.text).startswith("unknown runs together 0.1.0+7777777 and this app 0.1.0+5555555; they work ")
    assert all("launch.py update" in str(note.text) for note in (older, newer, unknown))
