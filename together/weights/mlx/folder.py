"""`convert_folder`: a model that is here, written as a folder in MLX's format, which mlx-lm opens.

A child process makes the weights, matrix by matrix. The folder appears whole or not at all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from together.errors import BadSetting, LoadFailed
from together.jsonfile import write_synced
from together.models.checkpoint import weight_files
from together.models.folder import read_json, unreadable
from together.models.form import form_of
from together.models.gguf.sources import is_imported, read_sources
from together.models.manifest import CONFIG, is_shard, read_manifest, small_files
from together.models.needed import needed_of
from together.models.packing import Packing
from together.models.reading import Stamp, read_published, require_here, stamp_of
from together.models.spec import Described, described, require_runnable
from together.sentences import Sentence, template
from together.weights.children import run_child
from together.weights.mlx.dialect import mlx_config, refuse_unknown, windows_note
from together.weights.mlx.making import NO_ROOM_THERE, FolderOrder, changed, saving
from together.weights.mlx.plan import FolderPlan, Fp8, plan_folder, widened_by_packing
from together.weights.part import Progress, require_space
from together.weights.store import drafted, local_name


@dataclass(frozen=True, slots=True)
class WrittenFolder:
    """The folder that was written, its bytes, and what a person should know of its weights."""

    name: str
    folder: Path
    bytes: int
    facts: tuple[Sentence, ...]


async def convert_folder(source: Path, target: Path, home: Path, form: str, progress: Progress) -> WrittenFolder:
    """Write the model in `source` into `target`, a new or an empty folder, in MLX's format.

    `form` names what plain weights are quantized to (see models/form.py); where it is empty, they stay plain.
    `progress` gets the bytes of the source that are done, and all. Raises BadSetting, UnsupportedModel, BrokenModel,
    LoadFailed or DiskFull; then, and where this is cancelled, nothing is left.
    """
    job = _opened(source, target, home, form)
    name, draft = job.found.spec.name, job.target.with_name(f".{job.target.name}.new")
    with saving(job.target, name), drafted(job.target, draft):
        _write_small(draft, job.source, job.config)
        await _make_weights(job, draft, progress)
        if _stamp(job.source) != job.stamp:
            raise changed(name)
    return WrittenFolder(name, job.target, _size(job.target), tuple(_facts(job.plan, job.found)))


@dataclass(frozen=True, slots=True)
class _Job:
    """What is known before anything is written; `stamp` is that of the source's files."""

    source: Path
    target: Path
    home: Path
    form: str
    stamp: Stamp
    found: Described
    plan: FolderPlan
    config: dict[str, Any]


def _opened(source: Path, target: Path, home: Path, form: str) -> _Job:
    """Raises as `convert_folder` does."""
    source, target, home = source.absolute(), target.absolute(), home.absolute()
    _require_new(target)
    stamp = _stamp(source)
    found = described(source, read_published(source, local_name(source, home)))
    require_runnable(found)
    refuse_unknown(found.config, found.spec)
    plan = plan_folder(
        needed_of(found.config, found.tensors, found.zeros), form_of(form) if form else None, found.spec.dtype
    )
    config = mlx_config(read_json(source, CONFIG), found.config, found.spec, plan.quantization)
    require_space(target, plan.most_bytes, found.spec.name, NO_ROOM_THERE)
    return _Job(source, target, home, form, stamp, found, plan, config)


async def _make_weights(job: _Job, draft: Path, progress: Progress) -> None:
    total = job.plan.source_bytes
    order = FolderOrder(str(job.home), str(job.source), job.found.spec.fingerprint, job.form, str(draft))
    progress(0, total)
    await run_child("together.weights.mlx.making", order, lambda done: progress(done, total), _ended)
    progress(total, total)


def _ended(code: int, said: str | Sentence) -> LoadFailed:
    message = "the process that converts weights ended with code {code} ({said}); convert the model again"
    return LoadFailed(message, code=code, said=said)


def _require_new(target: Path) -> None:
    with saving(target, str(target.name)):
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise BadSetting("{folder} exists already and is not empty; choose a new folder", folder=str(target))


def _stamp(source: Path) -> Stamp:
    """Of every file that is read. Raises BrokenModel where one is missing."""
    try:
        return stamp_of([source / CONFIG, *_weights(source)])
    except OSError as error:
        raise unreadable(source, error) from error


def _weights(source: Path) -> list[Path]:
    if is_imported(source):
        return [Path(file.path) for file in read_sources(source)]
    if is_shard(source):
        manifest = read_manifest(source)
        require_here(source, manifest, manifest.units.values())
        return [source / name for name in manifest.units]
    return [source / name for name in weight_files(source)]


def _write_small(draft: Path, source: Path, config: dict[str, Any]) -> None:
    """config.json, the tokenizer's files and the templates."""
    small = small_files(source) | {CONFIG: json.dumps(config, indent=4).encode()}
    for name, data in small.items():
        write_synced(draft / name, data)


def _facts(plan: FolderPlan, found: Described) -> Iterator[Sentence]:
    for how, said in (("kept", "{count} quantized {count:plural matrix keeps its|matrices keep their} codes: {shown}"),
                      ("quantized", "{count} {count:plural matrix was|matrices were} quantized: {shown}")):  # fmt: skip
        counts = Counter(matrix.packing for matrix in plan.matrices if matrix.how == how and matrix.packing)
        if counts:
            yield template(said, count=counts.total(), shown=tuple(map(str, sorted(counts))))
    for packing, (count, size) in widened_by_packing(plan.matrices).items():
        yield _widened(packing, count, size)
    note = windows_note(found.spec)
    if note:
        yield note


def _widened(packing: Packing | Fp8 | None, count: int, size: int) -> Sentence:
    return template(
        "{count} {count:plural matrix|matrices} of {packing} became plain in bf16, {size:size}: MLX has no product for "
        "{count:plural it|them}; --quantize 8 makes them smaller",
        count=count,
        packing=str(packing) if packing else template("experts in several packings"),
        size=size,
    )


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
