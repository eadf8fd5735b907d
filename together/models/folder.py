"""A model's folder as files: names that stay inside it, size limits, JSON."""

from __future__ import annotations

import json
import logging
import re
import stat
from pathlib import Path
from typing import Any

from together.errors import BrokenModel
from together.models.names import MANIFEST, is_model_name, is_plain, is_sha256, is_template, model_name
from together.models.recognise import POINTER, pointer
from together.wording import quoted

INDEX = "model.safetensors.index.json"
MAX_TEMPLATE = 2**20  # bytes of any other small file: a chat template; the longest published have 0.1 MB

_MIB = 2**20
_MOST = {
    "config.json": 2 * _MIB,  # usually 1 kB; lists of layers that are not quantized make it 0.3 MB
    "generation_config.json": _MIB,
    "tokenizer.json": 64 * _MIB,  # Gemma's 262,000 tokens: 33 MB
    "tokenizer_config.json": 16 * _MIB,  # Gemma's 6,000 unused tokens: 1.2 MB
    "special_tokens_map.json": 4 * _MIB,
    "added_tokens.json": 4 * _MIB,
    "vocab.json": 32 * _MIB,
    "merges.txt": 32 * _MIB,
    INDEX: 32 * _MIB,  # 37,000 tensors: 4 MB; Kimi K2's 210,000: 23 MB
    MANIFEST: 48 * _MIB,  # below what one message carries
}


def most_bytes(name: str) -> int:
    """The most that a file of this name may have."""
    return _MOST.get(name, MAX_TEMPLATE)


MAX_VALUES = 500_000  # of a JSON file that is read at once: 0.1 s, in which no other thread has a turn, and 100 MB

log = logging.getLogger(__name__)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object from the folder. Raises BrokenModel naming the file and the reason."""
    return json_object(inside(folder, name), read_bytes(folder, name))


def side_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object that a model can do without: empty, with a word in the log, where it is missing or broken."""
    if not (folder / name).is_file():
        return {}
    try:
        return read_json(folder, name)
    except BrokenModel as error:
        log.warning("%s; it is passed over", error)
        return {}


def read_bytes(folder: Path, name: str) -> bytes:
    """A file of the folder, no larger than its name allows. Raises BrokenModel naming the file and the reason."""
    file, most = inside(folder, name), most_bytes(name)
    try:
        facts = file.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise broken(file, "it is not a file")
        if facts.st_size > most:
            raise broken(file, f"it has {facts.st_size} bytes, more than {most}")
        with file.open("rb") as stream:
            data = stream.read(most + 1)
    except FileNotFoundError:
        raise BrokenModel(f"{folder} has no {name}; choose a folder that holds a model") from None
    except OSError as error:
        raise unreadable(file, error) from error
    if len(data) > most:
        raise broken(file, f"it has more than {most} bytes")
    return data


def json_object(file: Path, data: bytes) -> dict[str, Any]:
    """`data`, in any of JSON's encodings, as an object; `file` is what an error names. Raises BrokenModel."""
    if data.startswith(POINTER):
        raise pointer(file)
    if sum(data.count(sign) for sign in b",[{") > MAX_VALUES:
        raise broken(file, f"it has more than {MAX_VALUES} values")
    try:
        value = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise broken(file, f"it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise broken(file, "it is not a JSON object")
    return value


def inside(folder: Path, name: str) -> Path:
    """The path of a file directly in `folder`, or in its folder of templates.

    Raises BrokenModel for a name that leads, or links, elsewhere. The hub's cache links `snapshots/<revision>/<file>`
    to its own `blobs`: that one neighbour is part of the model.
    """
    if not is_plain(name) and not is_template(name):
        raise BrokenModel(f"{title(folder)} names the file {quoted(name)}, not a plain file name; choose another model")
    root = folder.resolve()
    path = (root / name).resolve()
    homes = [(root / name).parent] + ([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])
    if path.parent not in homes:
        raise BrokenModel(f"{title(folder)}/{name} leads outside the model's folder; copy the file into it")
    return root / name


def hub_name(folder: Path) -> str | None:
    """`org/name` of a snapshot in the hub's cache, `models--org--name/snapshots/<revision>`; None for other folders."""
    root = folder.resolve()
    if root.parent.name != "snapshots" or not root.parent.parent.name.startswith("models--"):
        return None
    name = root.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    return name if is_model_name(name) else None


def folder_name(folder: Path) -> str:
    """What the model in a plain folder is called: by its place in the hub's cache, else by the folder's name."""
    return hub_name(folder) or model_name(folder.resolve().name)


def folder_revision(folder: Path) -> str:
    """The hub's commit, where the folder is a snapshot of the hub's cache; else empty."""
    return folder.resolve().name if hub_name(folder) else ""


def title(folder: Path) -> str:
    """What to call a folder's model in a sentence: the app's cache names folders by fingerprint. Never fails."""
    name = folder.absolute().name
    if is_sha256(name):
        return _name_in(folder / MANIFEST) or name
    return hub_name(folder) or name


_NAME = re.compile(rb'"name"\s*:\s*"([^"\\]*)"')
_NAME_WITHIN = 4096  # bytes: a manifest begins with it


def _name_in(manifest: Path) -> str:
    """The name that a manifest gives, unchecked otherwise; empty where it gives none."""
    try:
        with manifest.open("rb") as stream:
            begin = stream.read(_NAME_WITHIN)
    except OSError:
        return ""
    found = _NAME.search(begin)
    name = found[1].decode(errors="replace") if found else ""
    return name if is_model_name(name) else ""


def broken(file: Path, reason: str) -> BrokenModel:
    """The error for a file that is not what it claims to be."""
    return BrokenModel(f"{title(file.parent)}/{file.name} is broken: {reason}; get this model again")


def unreadable(file: Path, error: OSError) -> BrokenModel:
    """The error for a file that is there and cannot be read: another copy of it would not help."""
    reason = error.strerror or error
    return BrokenModel(f"{title(file.parent)}/{file.name} cannot be read ({reason}); check the rights and the disk")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook`: readers differ on which of two equal keys counts. Raises ValueError if it matters."""
    table = dict(pairs)
    if len(table) != len(pairs):
        first: dict[str, Any] = {}
        for name, value in pairs:
            if first.setdefault(name, value) != value:
                raise ValueError(f"it names {quoted(name)} twice")
    return table
