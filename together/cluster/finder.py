"""Where this machine has a model: the head's path (a shared folder), the bundled models, the user's models folder.

Knows no network: what is not here is not fetched.
"""

from __future__ import annotations

import re
from pathlib import Path

from together.errors import BrokenModel, TogetherError
from together.models.spec import fingerprint
from together.types import ModelRef

BUNDLED = Path(__file__).resolve().parents[2] / "examples" / "demo_model"
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def find_model(model: ModelRef, home: Path, node_name: str) -> Path:
    """The folder with exactly this model. Raises BrokenModel, with both fingerprints where another version is here."""
    other = ""
    for folder in _candidates(model, home):
        if not (folder / "config.json").is_file():
            continue
        try:
            found = fingerprint(folder)
        except TogetherError:
            continue  # another candidate may be whole; where none is, the sentence below is raised
        if found == model.fingerprint:
            return folder
        if folder != BUNDLED or model.name == BUNDLED.name:  # every machine has that one, whatever is looked for
            other = other or found
    if other:
        raise BrokenModel(
            f"node {node_name} has another version of {model.name}: {other[:12]} there, {model.fingerprint[:12]} at "
            "the head; copy the same files to both machines"
        )
    raise BrokenModel(
        f"node {node_name} does not have {model.name}; put its folder at {model.path}, or under models/ in the app's "
        "home folder there, or on a drive that both machines see"
    )


def _candidates(model: ModelRef, home: Path) -> list[Path]:
    found = [Path(model.path), BUNDLED]
    if _NAME.fullmatch(model.name) and not {".", ".."} & set(model.name.split("/")):
        found.append(home / "models" / model.name)
    return found
