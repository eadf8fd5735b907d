"""What a person types for a model, `--model` and the like, as a folder of this machine or an id of the hub.

Knows no network: whether the hub has a model is for weights/hub.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from together.errors import BadSetting
from together.models.manifest import CONFIG, MANIFEST
from together.models.names import is_model_name
from together.models.recognise import snapshot, what_it_is
from together.quoting import MOST, cut, quoted
from together.weights.find import BUNDLED, known_models


@dataclass(frozen=True, slots=True)
class HubId:
    """The name of a model on the hub, `org/name`."""

    name: str

    def __str__(self) -> str:
        return self.name


def resolve_model(text: str, home: Path) -> Path | HubId:
    """A folder that holds a model, a name that this machine knows, or an id of the hub, in this order.

    Of several models with one name the most complete one is taken. Raises BadSetting with a sentence.
    """
    folder = _folder(text)
    if folder is not None and _is_model(folder):
        return folder
    known = _known(text, home)
    if known is not None:
        return known
    if is_model_name(text) and text.count("/") == 1 and not Path(text).exists():
        return HubId(text)
    raise BadSetting(_advice(text, home))


def _folder(text: str) -> Path | None:
    """`text` as a path; a folder of the hub's cache above a snapshot stands for the snapshot."""
    if not text:
        return None  # Path("") would be the current folder
    path = Path(text).expanduser()
    try:
        return snapshot(path)
    except (OSError, ValueError):  # a name too long for a path, or with a zero in it
        return path


def _is_model(folder: Path) -> bool:
    try:
        return any((folder / name).is_file() for name in (CONFIG, MANIFEST))
    except (OSError, ValueError):  # a name too long for a path, or with a zero in it
        return False


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _known(name: str, home: Path) -> Path | None:
    if not is_model_name(name):
        return None
    if name == BUNDLED.name:
        return BUNDLED
    own = home / "models" / name
    if _is_model(own):
        return own
    found = [model for model in known_models(home) if model.name == name and not model.fault]
    found.sort(key=lambda model: (model.whole, len(model.units)), reverse=True)
    return found[0].folder if found else None


def _advice(text: str, home: Path) -> str:
    path = _folder(text)
    if path is not None and _is_there(path):
        return (
            what_it_is(path)
            or f"{cut(text, MOST)} has neither {CONFIG} nor {MANIFEST}; choose a folder that holds a model"
        )
    names = sorted({model.name for model in known_models(home) if not model.fault})
    return (
        f"there is no model {quoted(text)} on this machine ({', '.join(names) or 'none is here'}); "
        "name a folder, or a model of the hub as org/name"
    )
