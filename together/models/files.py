"""Which files a model folder has and which tensors of them a layer range needs; reads them range by range.

Knows no framework: a tensor here is a name, a dtype, a shape and bytes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from together.errors import BrokenModel, UnsupportedModel
from together.models.headers import FileHeader, TensorInfo, broken, read_header
from together.types import LayerRange

EMBED = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"
_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.(.+)")
_COMPUTED = "rotary_emb.inv_freq"  # old checkpoints store what every implementation computes
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object from the folder. Raises BrokenModel naming the file and the reason."""
    file = inside(folder, name)
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise BrokenModel(f"{folder} has no {name}; choose a folder that holds a model") from None
    except OSError as error:
        raise broken(file, f"cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise broken(file, f"it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise broken(file, "it is not a JSON object")
    return value


def inside(folder: Path, name: str) -> Path:
    """The path of a file directly in `folder`. Raises BrokenModel for a name that leads, or links, elsewhere.

    The hub's cache links `snapshots/<revision>/<file>` to its own `blobs`: that one neighbour is part of the model.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or ":" in name or "\0" in name:
        raise BrokenModel(f"{folder.name} names the file {name!r}, not a plain file name; get this model again")
    root = folder.resolve()
    path = (root / name).resolve()
    homes = [root] + ([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])
    if path.parent not in homes:
        raise BrokenModel(f"{folder.name}/{name} leads outside the model's folder; copy the file into it")
    return root / name


def read_headers(folder: Path) -> tuple[FileHeader, ...]:
    """The checked headers of the model's safetensors files, by name. Raises BrokenModel or UnsupportedModel."""
    if inside(folder, _SINGLE).is_file():
        return (read_header(inside(folder, _SINGLE)),)
    if not inside(folder, _INDEX).is_file():
        raise _no_weights(folder)
    places = _index(folder)
    headers = tuple(read_header(inside(folder, name)) for name in sorted(set(places.values())))
    _check_index(folder, places, headers)
    return headers


def _no_weights(folder: Path) -> Exception:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        return UnsupportedModel(
            f"{folder.name} has only pickle weights (*.bin), which can run code; choose a safetensors version of it"
        )
    return BrokenModel(f"{folder} has neither {_SINGLE} nor {_INDEX}; choose a folder that holds a model's weights")


def _index(folder: Path) -> dict[str, str]:
    places = read_json(folder, _INDEX).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise broken(folder / _INDEX, "it has no weight_map of file names")
    return places


def _check_index(folder: Path, places: dict[str, str], headers: tuple[FileHeader, ...]) -> None:
    found: dict[str, str] = {}
    for tensor in (tensor for header in headers for tensor in header.tensors):
        if tensor.name in found:
            raise broken(tensor.file, f"tensor {tensor.name!r} is in {found[tensor.name]} as well")
        found[tensor.name] = tensor.file.name
    for name, file in places.items():
        if found.get(name) != file:
            raise broken(folder / _INDEX, f"it places {name!r} in {file}, which does not have it")


def all_tensors(folder: Path) -> tuple[TensorInfo, ...]:
    """Every tensor of the model, without those that implementations compute themselves."""
    tensors = (tensor for header in read_headers(folder) for tensor in header.tensors)
    return tuple(tensor for tensor in tensors if not tensor.name.endswith(_COMPUTED))


def layer_of(name: str) -> int | None:
    """The decoder layer a tensor belongs to; None for embedding, norm, head and anything else."""
    match = _LAYER.fullmatch(name)
    return int(match[1]) if match else None


def shifted(name: str, by: int) -> str:
    """`name` with its layer number lowered by `by`, as a shard that starts at layer `by` counts."""
    match = _LAYER.fullmatch(name)
    return f"model.layers.{int(match[1]) - by}.{match[2]}" if match else name


def tensors_for(folder: Path, layers: LayerRange, total: int) -> tuple[TensorInfo, ...]:
    """What a stage of `layers` of `total` reads: its layers, embedding if first, norm and head if last.

    A tied model has no head tensor: its last stage reads the embedding instead, which is in the list once.
    """
    tensors = all_tensors(folder)
    ends = _ends(layers, total, tied=HEAD not in {tensor.name for tensor in tensors})
    return tuple(t for t in tensors if t.name in ends or _within(layers, layer_of(t.name)))


def _within(layers: LayerRange, layer: int | None) -> bool:
    return layer is not None and layers.start <= layer < layers.stop


def _ends(layers: LayerRange, total: int, *, tied: bool) -> set[str]:
    first = {EMBED} if layers.start == 0 else set()
    last = {NORM, EMBED if tied else HEAD} if layers.stop == total else set()
    return first | last


def read_into(tensor: TensorInfo, target: memoryview) -> None:
    """Read a tensor's bytes into `target` (`tensor.nbytes` writable bytes). Raises BrokenModel if the file changed."""
    assert target.nbytes == tensor.nbytes
    try:
        with tensor.file.open("rb", buffering=0) as stream:
            stream.seek(tensor.start)
            done = 0
            while done < tensor.nbytes:
                count = stream.readinto(target[done:])
                if not count:
                    raise broken(tensor.file, f"it ends within tensor {tensor.name!r}")
                done += count
    except OSError as error:
        raise broken(tensor.file, f"cannot be read ({error.strerror or error})") from error
