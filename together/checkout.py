"""Which version of the program this is: its number and, of a git checkout, the commit."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path

from together import __version__

ROOT = Path(__file__).resolve().parent.parent
SHORT = 7  # digits of a commit


@cache
def own_version() -> str:
    """As `0.1.0+e89acf3`; without a checkout the number alone. Git itself is not needed."""
    with suppress(OSError, ValueError):
        if commit := _commit(ROOT / ".git"):
            return f"{__version__}+{commit[:SHORT]}"
    return __version__


def _commit(git: Path) -> str:
    """Of a checkout, or of a worktree of one, where `.git` is a file."""
    if git.is_file():
        git = git.parent / git.read_text(encoding="utf-8").partition(":")[2].strip()
    head = (git / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref:"):
        return head
    name, shared = head.partition(":")[2].strip(), git
    if (common := git / "commondir").is_file():
        shared = git / common.read_text(encoding="utf-8").strip()
    for place in (git, shared):
        if (place / name).is_file():
            return (place / name).read_text(encoding="utf-8").strip()
    packed = (shared / "packed-refs").read_text(encoding="utf-8").splitlines()
    return next((line.split()[0] for line in packed if line.endswith(f" {name}")), "")
