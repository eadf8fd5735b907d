"""`launch.py inspect`: what one model is, as a table or for programs."""

from __future__ import annotations

import json
from pathlib import Path

from together.desktop.show import print_table
from together.models.remarks import remarks
from together.weights.find import resolve_model
from together.weights.inspected import inspect_folder, inspect_hub, inspected_json, inspected_lines


def run_inspect(model: str, home: Path, as_json: bool) -> None:
    """Print what `model`, a folder, a known name or a hub id, is. Raises BadInput or Unreachable."""
    found = resolve_model(model, home)
    with remarks() as odd:
        inspected = inspect_folder(found, home) if isinstance(found, Path) else inspect_hub(found, home)
    if as_json:
        print(json.dumps(inspected_json(inspected), indent=2))
    else:
        print_table(("", ""), [*inspected_lines(inspected), *(("note", remark) for remark in odd)])
