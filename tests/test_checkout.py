"""The version names the commit of a checkout, as git does, and two versions are told apart."""

from __future__ import annotations

import io
import subprocess
from dataclasses import replace

from rich.console import Console

from tests.desktop.test_printable import status
from together import __version__
from together.checkout import ROOT, SHORT, own_version
from together.desktop.show import show_status


def test_the_version_has_the_commit() -> None:
    git = ["git", "rev-parse", f"--short={SHORT}", "HEAD"]
    done = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    commit = f"+{done.stdout.strip()}" if done.returncode == 0 else ""
    assert own_version() == __version__ + commit


def test_a_node_of_another_version_is_named_with_both() -> None:
    shown = replace(status(), version="0.2.0+abcdef0")
    (node,) = shown.nodes
    stream = io.StringIO()
    nodes = (replace(node, name="mini", version="0.1.0+0123456"),)
    show_status(replace(shown, nodes=nodes), "http://127.0.0.1:1", Console(file=stream, width=1000))
    assert "mini runs together 0.1.0+0123456 and this app 0.2.0+abcdef0; they work together" in stream.getvalue()
    assert "git pull" in stream.getvalue()
