"""Which version of the program this is: its number and, of a git checkout, the commit; and which of two is older."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from together import __version__

ROOT = Path(__file__).resolve().parent.parent
SHORT = 7  # digits of a commit
GIT_WITHIN = 5.0  # seconds


@cache
def own_version() -> str:
    """As `0.1.0+e89acf3`; without a checkout the number alone. Git itself is not needed."""
    with suppress(OSError, ValueError):
        if commit := _commit(ROOT / ".git"):
            return f"{__version__}+{commit[:SHORT]}"
    return __version__


@cache
def own_time() -> int:
    """Unix time of the commit; 0 without a checkout, or without git, which alone reads it."""
    command = ["git", "-C", str(ROOT), "show", "--no-patch", "--format=%ct", "HEAD"]
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        shown = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=GIT_WITHIN, check=True)
        return int(shown.stdout) if (ROOT / ".git").exists() else 0  # git looks in the folders above, too
    return 0


@dataclass(frozen=True, slots=True)
class Release:
    """A version of the program, as `own_version` has it, and the Unix time of its commit; 0: not known."""

    version: str
    made: int

    def is_older(self, other: Release) -> bool:
        """False also where nobody can tell."""
        own, its = self._number(), other._number()
        if own and its and own != its:
            return own < its
        return self.version != other.version and 0 < self.made < other.made

    def _number(self) -> tuple[int, ...]:
        """Empty for what is no number, as another program might say."""
        parts = self.version.partition("+")[0].split(".")
        return tuple(map(int, parts)) if all(part.isascii() and part.isdecimal() for part in parts) else ()


def own_release() -> Release:
    return Release(own_version(), own_time())


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
