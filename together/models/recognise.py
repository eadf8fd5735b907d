"""What a path is that holds no model for us, in a sentence with the next step; and where in a hub's cache one lies.

Looks at names and first bytes alone. Raises nothing of its own where it knows nothing.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from together.errors import BadSetting, BrokenModel, UnsupportedModel
from together.models.names import MANIFEST, is_plain

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
        raise BadSetting(f"{folder} holds no snapshot of the model yet; run its download again")
    raise BadSetting(
        f"{folder} holds several snapshots and no refs/main; choose one of them: {', '.join(there[:_LISTED])}"
    )


def what_it_is(path: Path) -> str | None:
    """A sentence for a file or folder that holds no config.json of a model; None where nothing is recognised."""
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return f"{path.name} is a GGUF file, which does not run here; choose the model's folder with safetensors"
        if path.suffix == ".safetensors" or path.name == "config.json":
            return f"{path.name} is one file of a model; choose its folder, {path.parent}"
        return f"{path.name} is a file; choose a folder that holds a model"
    try:
        names = {item.name for item in path.iterdir()}
    except OSError:
        return None
    if any(name.startswith("models--") for name in names):
        some = sorted(name for name in names if name.startswith("models--"))[:_LISTED]
        return f"{path} is the hub's cache of several models; choose one of its folders: {', '.join(some)}"
    return without_weights(str(path), names, path)


def without_weights(model: str, names: Collection[str], folder: Path | None = None) -> str | None:
    """A sentence for a folder or repository without weights that run here, by the names of its files."""
    if _ADAPTER in names:
        base = _base_of(folder / _ADAPTER) if folder is not None else ""
        return (
            f"{model} holds an adapter (LoRA) and no whole model; merge it into its base model"
            f"{f' {base}' if base else ''} and choose the merged folder"
        )
    if any(name.lower().endswith(".gguf") for name in names):
        return f"{model} holds GGUF weights, which do not run here; choose a version of it with safetensors"
    rest = sorted(name for name in names if name.endswith(_UNFINISHED))
    if rest or (folder is not None and _downloading(folder)):
        shown = f" ({rest[0]})" if rest else ""
        return f"{model} is a download that did not end{shown}: its safetensors are not whole; run it again to go on"
    if any(name.endswith(_PICKLES) for name in names):
        return f"{model} has only pickle weights (*.bin), which can run code; choose a safetensors version of it"
    return None


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
            f"{folder.name} has only tokenizer.model and no tokenizer.json; take that file from another version of the "
            "model, or make it once: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    if not (folder / MANIFEST).is_file():
        found = next((name for name in _EMBEDDING if (folder / name).is_file()), None)
        if found:
            raise UnsupportedModel(
                f"{folder.name} is an embedding model (it has {found}): it writes no text; choose a causal model"
            )


def is_pointer(file: Path) -> bool:
    """Whether the file is a pointer of Git LFS; also where it cannot be read it is none."""
    return _begin(file, len(POINTER)) == POINTER


def pointer(file: Path) -> BrokenModel:
    """The error for a file that Git LFS has not fetched."""
    return BrokenModel(
        f"{file.parent.name}/{file.name} is a pointer of Git LFS and not the file itself; run git lfs pull in "
        "that folder, or download the model without git"
    )


def _downloading(folder: Path) -> bool:
    return any((folder / ".cache" / "huggingface" / "download").glob("*.incomplete"))


def _base_of(file: Path) -> str:
    try:
        base = json.loads(_begin(file, _MOST)).get("base_model_name_or_path")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return base if isinstance(base, str) and len(base) < 200 and base.isprintable() else ""


def _first_line(file: Path) -> str:
    line = _begin(file, _MOST).decode(errors="replace").strip()
    return line if is_plain(line) else ""


def _begin(file: Path, most: int) -> bytes:
    """The first bytes of a regular file; none of anything else, which might never end or never begin."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return b""
        with file.open("rb") as stream:
            return stream.read(most)
    except (OSError, ValueError):
        return b""
