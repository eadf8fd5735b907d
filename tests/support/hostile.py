"""Model folders made to take memory and time. Each is written in a second, and named for what is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

DEEP = b"[" * 5_000_000
MANY = 1_500_000  # tensors
MIB = 2**20


def hostile_folders(good: Path, root: Path, names: tuple[str, ...] = ()) -> dict[str, tuple[Path, str]]:
    """A copy of `good` for every way to be bad (or for `names`): its folder, and the file that a refusal names."""
    found = {}
    for name in names or _WAYS:
        file, spoil = _WAYS[name]
        folder = root / name
        shutil.copytree(good, folder)
        spoil(folder / file)
        found[name] = (folder, file)
    return found


def _weights(header: Callable[[], bytes], length: int | None = None) -> Callable[[Path], None]:
    return lambda file: _frame(file, header(), length)


def _frame(file: Path, header: bytes, length: int | None = None) -> None:
    size = len(header) if length is None else length
    file.write_bytes(size.to_bytes(8, "little") + header)


def _entry(name: str, shape: str, stop: int = 0) -> bytes:
    return f'"{name}":{{"dtype":"U8","shape":{shape},"data_offsets":[0,{stop}]}}'.encode()


def _many(file: Path, count: int, name: str) -> None:
    entries = b",".join(_entry(f"{name}{index}", "[0]") for index in range(count))
    _frame(file, b"{" + entries + b"}")


def _data(data: Callable[[], bytes]) -> Callable[[Path], None]:
    return lambda file: _write(file, data())


def _write(file: Path, data: bytes) -> None:
    file.unlink(missing_ok=True)
    file.write_bytes(data)


def _padded(file: Path, padding: bytes, size: int) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:1] + padding * (size // len(padding)) + content[1:])


def _index(file: Path, content: bytes) -> None:
    (file.parent / "model.safetensors").unlink()
    file.write_bytes(content)


def _doubled(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(b'{"num_hidden_layers": 3,' + content.lstrip()[1:])


WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
_TWICE = b"{" + _entry("a" * 3000, "[0]") + b"," + _entry("a" * 3000, "[0]") + b"}"
_WAYS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "tensors-a-million-and-a-half": (WEIGHTS, lambda file: _many(file, MANY, "t")),
    "tensors-too-many": (WEIGHTS, lambda file: _many(file, 400_000, "model.layers.0.")),
    "tensors-as-many-as-fit": (WEIGHTS, lambda file: _many(file, 290_000, "model.layers.0.")),
    "doubled-tensor": (WEIGHTS, _weights(lambda: _TWICE)),
    "giant-dimension": (WEIGHTS, _weights(lambda: b"{" + _entry("a", f"[{2**63}, 0]") + b"}")),
    "giant-number": (WEIGHTS, _weights(lambda: b"{" + _entry("a", f"[{'9' * 1500}, 0]") + b"}")),
    "many-dimensions": (WEIGHTS, _weights(lambda: b"{" + _entry("a", json.dumps([0] * 600)) + b"}")),
    "deep-header": (WEIGHTS, _weights(lambda: DEEP)),
    "deep-entry": (WEIGHTS, _weights(lambda: b'{"a":' + DEEP)),
    "wide-entry": (WEIGHTS, _weights(lambda: b'{"a":[' + b"[]," * 8_000_000 + b"[]]}")),
    "wide-metadata": (WEIGHTS, _weights(lambda: b'{"__metadata__":[' + b"[]," * 8_000_000 + b"[]]}")),
    "header-of-comments": (WEIGHTS, _weights(lambda: b"{" + b"/* a */" * (25 * MIB // 7) + b"}")),
    "header-of-spaces": (WEIGHTS, _weights(lambda: b"{" + b" " * 25 * MIB + b"]")),
    "header-longer-than-the-file": (WEIGHTS, _weights(lambda: b"{}", 2**40)),
    "long-name": (WEIGHTS, _weights(lambda: b'{"' + b"n" * 20 * MIB + b'":{}}')),
    "config-of-spaces": (CONFIG, lambda file: _padded(file, b" ", 25 * MIB)),
    "config-of-comments": (CONFIG, lambda file: _padded(file, b"/* a */", 25 * MIB)),
    "config-of-a-gigabyte": (CONFIG, lambda file: _sparse(file, 2**30)),
    "deep-config": (CONFIG, _data(lambda: b'{"a":' + b"[" * MIB)),
    "doubled-config": (CONFIG, _doubled),
    "wide-config": (CONFIG, _data(lambda: b'{"a":[' + b"[]," * 600_000 + b"[]]}")),
    "deep-tokenizer": ("tokenizer.json", _data(lambda: DEEP)),
    "wide-tokenizer": ("tokenizer.json", _data(lambda: b'{"a":[' + b"[]," * 8_000_000 + b"[]]}")),
    "tokenizer-of-a-gigabyte": ("tokenizer.json", lambda file: _sparse(file, 2**30)),
    "deep-tokenizer-config": ("tokenizer_config.json", _data(lambda: b'{"a":' + DEEP)),
    "deep-index": (INDEX, lambda file: _index(file, b'{"weight_map":' + DEEP)),
    "wide-index": (INDEX, lambda file: _index(file, b'{"weight_map":{"a":[' + b"[]," * 8_000_000)),
    "index-of-many": (
        INDEX,
        lambda file: _index(file, b'{"weight_map":{' + b",".join(f'"{i}":"{i}"'.encode() for i in range(MANY)) + b"}}"),
    ),
    "template-of-a-gigabyte": ("chat_template.jinja", lambda file: _sparse(file, 2**30)),
}


def _sparse(file: Path, size: int) -> None:
    with file.open("wb") as stream:
        stream.truncate(size)
