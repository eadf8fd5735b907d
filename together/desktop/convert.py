"""`launch.py convert`: a model of this machine as a folder in MLX's format."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn

from together.desktop.show import one_line, print_line, progress_bars
from together.errors import BadSetting
from together.models.form import PUBLISHED, asked_form
from together.weights.find import resolve_model
from together.weights.mlx.folder import WrittenFolder, convert_folder
from together.wording import exact_size_text


def run_convert(model: str, folder: Path, quantize: str | None, quantize_head: str | None, home: Path) -> None:
    """Write it, with a bar, and say what was written. Raises as `convert_folder` does."""
    form = asked_form(quantize, quantize_head) or PUBLISHED
    source = resolve_model(model, home)
    if isinstance(source, str):
        message = "{model} is not on this machine; get it first: python3 launch.py pull {model}"
        raise BadSetting(message, model=source)
    try:
        written = _convert(source, folder, home, form)
    except KeyboardInterrupt:
        print_line(f"stopped; {folder} was not written")
        raise
    print_line(f"{written.name}: {exact_size_text(written.bytes)} in MLX's format are in {folder}")
    for fact in written.facts:
        print_line(f"  {fact}")


def _convert(source: Path, folder: Path, home: Path, form: str) -> WrittenFolder:
    columns = TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with progress_bars(*columns) as bar:
        task = bar.add_task(f"converting {one_line(source.name)}", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return asyncio.run(convert_folder(source, folder, home, form, progress))
