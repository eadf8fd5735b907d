"""What stands behind an option, as our types: layers, peers, a model folder. Knows no command."""

from __future__ import annotations

from pathlib import Path

from together.cluster.finder import BUNDLED
from together.errors import BadPlan, BadSetting
from together.models.spec import read_spec
from together.types import Endpoint, LayerRange


def endpoint_of(text: str) -> Endpoint:
    """`"10.0.0.5:47600"` or `"[::1]:47600"` → Endpoint. Raises BadSetting."""
    host, colon, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BadSetting(f"--peer {text!r} is not host:port, as 192.168.1.20:47600")
    return Endpoint((host,), int(port))


def check_model(folder: Path | None) -> None:
    """Raises BadSetting where no model can be, before anything starts."""
    if folder is not None and not (folder / "config.json").is_file():
        raise BadSetting(f"--model {folder}: there is no config.json in it; give the folder of a model")


def boundaries_of(layers: str | None, folder: Path | None) -> tuple[int, ...] | None:
    """`"0:3,3:8"` → (3,), checked against the model in `folder` (None: the bundled one). Raises BadPlan."""
    if layers is None:
        return None
    try:
        ranges = [LayerRange.parse(text) for text in layers.split(",")]
    except ValueError as error:
        raise BadPlan(f"--layers: {error}") from None
    starts = [0, *(part.stop for part in ranges[:-1])]
    for part, start in zip(ranges, starts, strict=True):
        if part.start != start:
            raise BadPlan(f"--layers: {part} must begin at {start}, so that no layer is left out or held twice")
    model = read_spec(folder or BUNDLED)
    if ranges[-1].stop != model.layers:
        raise BadPlan(f"--layers ends at {ranges[-1].stop}, and {model.name} has {model.layers} layers")
    return tuple(part.stop for part in ranges[:-1])
