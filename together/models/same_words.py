"""The tokenizer of a model as a hash, which the machines of a ring compare: an id means the same words to all.

A fingerprint covers weights and config.json, and of a GGUF file the words as well, which its header has.
"""

from __future__ import annotations

from pathlib import Path

from together.errors import BrokenModel
from together.models.manifest import Manifest
from together.models.names import is_gguf
from together.models.reading import sha256_of

TOKENIZER = "tokenizer.json"
_PIECE = 2**20  # bytes


def tokenizer_digest(folder: Path) -> str:
    """sha256 in hex of the tokenizer that lies in a model's folder; empty where none does. Raises OSError."""
    file = folder / TOKENIZER
    if not file.is_file():
        return ""
    with file.open("rb") as stream:
        return sha256_of(iter(lambda: stream.read(_PIECE), b""))


def own_tokenizer(folder: Path, manifest: Manifest) -> str:
    """Of the model that a head reads, for others to compare; empty where the fingerprint says all.

    Raises BrokenModel where the file changed since the model was fetched.
    """
    if any(is_gguf(file.name) for file in manifest.files):
        return ""
    found = tokenizer_digest(folder)
    wanted = next((small.sha256 for small in manifest.small if small.name == TOKENIZER), found)
    if found != wanted:
        raise BrokenModel(
            "{file} of {model} was changed after it was fetched: its sha256 is {found}, it should be {wanted}; delete "
            "the model with python3 launch.py rm {model}, and get it again",
            file=TOKENIZER,
            model=manifest.name,
            found=found[:12] or "that of no file",
            wanted=wanted[:12],
        )
    return found
