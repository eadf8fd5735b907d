"""A model's folder as files: names that stay inside it, size limits, JSON; and what a path is that holds no model."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from together.errors import BadSetting, BrokenModel, UnsupportedModel
from together.models.names import MANIFEST, is_model_key, is_model_name, is_plain, is_template, model_name
from together.models.remarks import remark
from together.sentences import NOTHING, Sentence, Value, template
from together.wording import quoted, reason_of

INDEX = "model.safetensors.index.json"
MAX_SIDE_FILE = 2**20  # bytes of any other small file: a chat template; the longest published have 0.1 MB

_MIB = 2**20
_MOST_OF = {
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
    return _MOST_OF.get(name, MAX_SIDE_FILE)


MAX_VALUES = 500_000  # of a JSON file that is read at once: 0.1 s, in which no other thread has a turn, and 100 MB


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
        remark("%s; it is passed over", error)
        return {}


def read_bytes(folder: Path, name: str) -> bytes:
    """A file of the folder, no larger than its name allows. Raises BrokenModel naming the file and the reason."""
    file, most = inside(folder, name), most_bytes(name)
    try:
        facts = file.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise broken(file, "it is not a file")
        if facts.st_size > most:
            raise broken(file, "it has {size} bytes, more than {most}", size=facts.st_size, most=most)
        with file.open("rb") as stream:
            data = stream.read(most + 1)
    except FileNotFoundError:
        raise BrokenModel(
            "{folder} has no {file}; choose a folder that holds a model", folder=str(folder), file=name
        ) from None
    except OSError as error:
        raise unreadable(file, error) from error
    if len(data) > most:
        raise broken(file, "it has more than {most} bytes", most=most)
    return data


def json_object(file: Path, data: bytes) -> dict[str, Any]:
    """`data`, in any of JSON's encodings, as an object; `file` is what an error names. Raises BrokenModel."""
    if data.startswith(POINTER):
        raise pointer(file)
    if sum(data.count(sign) for sign in b",[{") > MAX_VALUES:
        raise broken(file, "it has more than {most} values", most=MAX_VALUES)
    try:
        value = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise broken(file, "it is not JSON ({error})", error=str(error)) from error
    if not isinstance(value, dict):
        raise broken(file, "it is not a JSON object")
    return value


def inside(folder: Path, name: str) -> Path:
    """The path of a file directly in `folder`, or in its folder of templates.

    Raises BrokenModel for a name that leads, or links, elsewhere. The hub's cache links `snapshots/<revision>/<file>`
    to its own `blobs`: that one neighbour is part of the model.
    """
    if not is_plain(name) and not is_template(name):
        raise BrokenModel(
            "{model} names the file {file}, not a plain file name; choose another model",
            model=title(folder),
            file=quoted(name),
        )
    root = folder.resolve()
    path = (root / name).resolve()
    homes = [(root / name).parent] + ([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])
    if path.parent not in homes:
        raise BrokenModel(
            "{model}/{file} leads outside the model's folder; copy the file into it", model=title(folder), file=name
        )
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
    if is_model_key(name):
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


def broken(file: Path, reason: str | Sentence, **values: Value) -> BrokenModel:
    """The error for a file that is not what it claims to be; `reason` is a template with these values."""
    return BrokenModel(
        "{folder}/{file} is broken: {reason}; get this model again",
        folder=title(file.parent),
        file=file.name,
        reason=reason if isinstance(reason, Sentence) else template(reason, **values),
    )


def unreadable(file: Path, error: OSError) -> BrokenModel:
    """The error for a file that is there and cannot be read: another copy of it would not help."""
    return BrokenModel(
        "{folder}/{file} cannot be read ({reason}); check the rights and the disk",
        folder=title(file.parent),
        file=file.name,
        reason=reason_of(error),
    )


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook`: readers differ on which of two equal keys counts. Raises ValueError if it matters."""
    table = dict(pairs)
    if len(table) != len(pairs):
        first: dict[str, Any] = {}
        for name, value in pairs:
            if first.setdefault(name, value) != value:
                raise ValueError(f"it names {quoted(name)} twice")
    return table


POINTER = b"version https://git-lfs.github.com/spec/v1"
_ADAPTER = "adapter_config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_UNFINISHED = (".incomplete", ".part", ".download", ".crdownload", ".aria2", ".partial", ".tmp")
_EMBEDDING = ("config_sentence_transformers.json", "modules.json")
_LISTED = 5
_MOST = 2**20  # bytes of a file that is read for one word in it


def snapshot(folder: Path) -> Path:
    """The folder of the model itself where `folder` is one of the hub's cache above it, else `folder`.

    `models--org--name` and its `snapshots` stand for the snapshot that `refs/main` names, or for the only one. Raises
    BadSetting where there are several, or none.
    """
    root = folder.absolute()
    top = root.parent if root.name == "snapshots" else root
    if not top.name.startswith("models--") or not (top / "snapshots").is_dir():
        return folder
    there = sorted(item.name for item in (top / "snapshots").iterdir() if item.is_dir())
    main = _first_line(top / "refs" / "main")
    if main in there:
        return top / "snapshots" / main
    if len(there) == 1:
        return top / "snapshots" / there[0]
    if not there:
        raise BadSetting("{folder} holds no snapshot of the model yet; run its download again", folder=str(folder))
    raise BadSetting(
        "{folder} holds several snapshots and no refs/main; choose one of them: {snapshots}",
        folder=str(folder),
        snapshots=tuple(there[:_LISTED]),
    )


def what_it_is(path: Path) -> Sentence:
    """A sentence for a file or folder that holds no config.json of a model; empty where nothing is recognised."""
    if path.is_file():
        said = "{file} is a file; choose a folder that holds a model"
        if path.suffix == ".safetensors" or path.name == "config.json":
            said = "{file} is one file of a model; choose its folder, {folder}"
        return template(said, file=path.name, folder=str(path.parent))
    try:
        names = {item.name for item in path.iterdir()}
    except OSError:
        return NOTHING
    if any(name.startswith("models--") for name in names):
        some = tuple(sorted(name for name in names if name.startswith("models--"))[:_LISTED])
        said = "{folder} is the hub's cache of several models; choose one of its folders: {some}"
        return template(said, folder=str(path), some=some)
    return without_weights(str(path), names, path)


def without_weights(model: str, names: Collection[str], folder: Path | None = None) -> Sentence:
    """A sentence for a folder or repository without weights that run here, by the names of its files; else empty."""
    said, shown = "", ""
    rest = sorted(name for name in names if name.endswith(_UNFINISHED))
    if _ADAPTER in names:
        base = _base_of(folder / _ADAPTER) if folder is not None else ""
        shown = f" {base}" if base else ""
        said = (
            "{model} holds an adapter (LoRA) and no whole model; merge it into its base model{shown} and choose the "
            "merged folder"
        )
    elif any(name.lower().endswith(".gguf") for name in names):
        said = "{model} has GGUF files of which none is a language model; choose another version of it"
    elif rest or (folder is not None and _downloading(folder)):
        shown = f" ({rest[0]})" if rest else ""
        said = "{model} is a download that did not end{shown}: its safetensors are not whole; run it again to go on"
    elif any(name.endswith(_PICKLES) for name in names):
        said = "{model} has only pickle weights (*.bin), which can run code; choose a safetensors version of it"
    return template(said, model=model, shown=shown) if said else NOTHING


def require_whole(folder: Path, names: Iterable[str]) -> None:
    """Raises BrokenModel, naming the file, where one of these files is a pointer of Git LFS in place of the file.

    And UnsupportedModel for the folder of an embedding model, whose weights look like those of any other, and for one
    that has its words in a form that is not read here.
    """
    for name in names:
        if is_pointer(folder / name):
            raise pointer(folder / name)
    if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
        raise UnsupportedModel(
            "{model} has only tokenizer.model and no tokenizer.json; take that file from another version of the model, "
            "or make it once: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
            model=folder.name,
        )
    if not (folder / MANIFEST).is_file():
        found = next((name for name in _EMBEDDING if (folder / name).is_file()), None)
        if found:
            raise UnsupportedModel(
                "{model} is an embedding model (it has {found}): it writes no text; choose a causal model",
                model=folder.name,
                found=found,
            )


def is_pointer(file: Path) -> bool:
    """Whether the file is a pointer of Git LFS; also where it cannot be read it is none."""
    return read_begin(file, len(POINTER)) == POINTER


def pointer(file: Path) -> BrokenModel:
    """The error for a file that Git LFS has not fetched."""
    return BrokenModel(
        "{folder}/{file} is a pointer of Git LFS and not the file itself; run git lfs pull in that folder, or download "
        "the model without git",
        folder=file.parent.name,
        file=file.name,
    )


def _downloading(folder: Path) -> bool:
    return any((folder / ".cache" / "huggingface" / "download").glob("*.incomplete"))


def _base_of(file: Path) -> str:
    try:
        base = json.loads(read_begin(file, _MOST)).get("base_model_name_or_path")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return base if isinstance(base, str) and len(base) < 200 and base.isprintable() else ""


def _first_line(file: Path) -> str:
    line = read_begin(file, _MOST).decode(errors="replace").strip()
    return line if is_plain(line) else ""


def read_begin(file: Path, most: int) -> bytes:
    """The first bytes of a regular file; none of anything else, which might never end or never begin."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return b""
        with file.open("rb") as stream:
            return stream.read(most)
    except (OSError, ValueError):
        return b""
