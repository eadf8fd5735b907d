"""`convert`: a model of this machine as a folder in MLX's format."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

from together.errors import BadSetting
from together.models.form import PUBLISHED, Quantize, asked_form
from together.scripting.thread import LoopThread
from together.settings import load_settings
from together.weights.find import resolve_model
from together.weights.mlx.folder import WrittenFolder, convert_folder
from together.weights.part import Progress


def convert(
    model: str | PathLike[str],
    folder: str | PathLike[str],
    quantize: Quantize | None = None,
    *,
    quantize_head: bool = True,
    progress: Progress = lambda done, total: None,
) -> WrittenFolder:
    """Write a model into `folder`, which is new or empty, so that mlx-lm opens it.

    Weights stay as they are; `quantize` makes 4 or 8 bits or mxfp4 of what is plain or has more bits, but with
    `quantize_head` False of neither embedding nor LM head. `progress` gets the bytes that are done, and all, in another
    thread. Raises BadSetting, UnsupportedModel, BrokenModel, LoadFailed or DiskFull; then no folder is left.
    """
    home = load_settings().home_path
    form = asked_form(quantize, None if quantize_head else "no") or PUBLISHED
    source = resolve_model(fspath(model), home)
    if isinstance(source, str):
        message = "{model} is not on this machine; get it first: python3 launch.py pull {model}"
        raise BadSetting(message, model=source)
    thread = LoopThread()
    try:
        return thread.run(lambda: convert_folder(source, Path(folder), home, form, progress))
    finally:
        thread.close()
