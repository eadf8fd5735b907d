"""Which GGUF file a repository of the hub stands for: its only model. Noted as it is listed, to hold offline too."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from together.jsonfile import recall_json, write_json


@dataclass(frozen=True, slots=True)
class OnlyFile:
    """The only GGUF model of a repository, by its first file."""

    file: str


def note_only(repo: str, file: str, home: Path) -> None:
    """The repository was listed, and has but this GGUF model; `file` is empty where it has more, or none."""
    note = _note(repo, home)
    if file == only_file(repo, home):
        return
    with suppress(OSError):  # then the hub is asked again
        write_json(note, OnlyFile(file)) if file else note.unlink(missing_ok=True)


def only_file(repo: str, home: Path) -> str:
    """Empty where the repository has several models, or was never listed here."""
    found = recall_json(_note(repo, home), OnlyFile)
    return found.file if found else ""


def _note(repo: str, home: Path) -> Path:
    """Beside the small files of the hub's models."""
    return home / "hub" / f"only--{repo.replace('/', '--')}.json"
