"""`launch.py update`: brings the checkout to what its remote has, unless that could lose something of the person's."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Dict, List

from installer.steps import Refused, last_words, run_step

NAMED = 3  # files that a sentence names


def pull(root: Path) -> str:
    """Get what is new; the commit that the checkout had before. Raises Refused where it has to stay as it is."""
    if not (root / ".git").exists():
        raise Refused(
            f"{root} is no git checkout, so nobody can tell what is new; get together once with git clone, and start "
            "it from there"
        )
    if shutil.which("git") is None:
        raise Refused("git is missing, and update needs it; install git from https://git-scm.com/downloads first")
    before = _ask(root, "rev-parse", "HEAD")
    _refuse_changes(root)
    if not _holds(root, "rev-parse", "--verify", "--quiet", "@{upstream}"):
        raise Refused(
            f"the checkout in {root} follows no branch of a remote; go back to one first, as with: git switch main"
        )
    _get(root)
    if not _holds(root, "merge-base", "--is-ancestor", "@{upstream}", "HEAD"):
        _go_forward(root)
    return before


def _refuse_changes(root: Path) -> None:
    """Files of the person's own that git does not know may stay: where a new one comes, git refuses by itself."""
    changed = [line[3:] for line in _ask(root, "status", "--porcelain", "--untracked-files=no").splitlines()]
    if changed:
        more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        raise Refused(
            f"files of the checkout were changed here: {', '.join(changed[:NAMED])}{more}; put that aside with git "
            "stash, which git stash pop brings back, or commit it, then update again"
        )


def _get(root: Path) -> None:
    with tempfile.TemporaryFile() as said:
        if run_step("asking for what is new", _command(root, "fetch", "--quiet"), said, _environment()):
            said.seek(0)
            words = last_words(said.read().decode(errors="replace"))
            raise Refused(
                f"git cannot ask for what is new ({words}); check the network connection, or run git fetch in {root} "
                "yourself, where it may ask you something"
            )


def _go_forward(root: Path) -> None:
    if not _holds(root, "merge-base", "--is-ancestor", "HEAD", "@{upstream}"):
        raise Refused(
            f"the checkout in {root} has commits of its own beside new ones of its remote; bring them together first, "
            "as with: git pull --rebase"
        )
    done = _run(root, "merge", "--ff-only", "--quiet", "@{upstream}")
    if done.returncode:
        words = last_words(done.stderr.decode(errors="replace"))
        raise Refused(f"git cannot put what is new in its place ({words}); move away what it names, then update again")


def _command(root: Path, *arguments: str) -> List[str]:
    return ["git", "-C", str(root), *arguments]


def _environment() -> Dict[str, str]:
    """Git asks for no password, since nobody would see the question."""
    return {"GIT_SSH_COMMAND": "ssh -oBatchMode=yes", **os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


def _run(root: Path, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    command, pipe = _command(root, *arguments), subprocess.PIPE
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=_environment())


def _holds(root: Path, *arguments: str) -> bool:
    return _run(root, *arguments).returncode == 0


def _ask(root: Path, *arguments: str) -> str:
    done = _run(root, *arguments)
    if done.returncode:
        words = last_words(done.stderr.decode(errors="replace"))
        raise Refused(f"git cannot read the checkout in {root} ({words}); run git status there, which says what to do")
    return done.stdout.decode(errors="replace").rstrip("\n")
