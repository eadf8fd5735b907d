"""GGUF files on the hub: which make one model, and the model by their headers alone, read in growing ranges.

What a machine makes of a file on the hub has the same bytes as what it makes of the same file on its disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from together.errors import BadSetting, BrokenModel
from together.models.form import PUBLISHED
from together.models.gguf.header import Source
from together.models.gguf.model import GgufModel, GgufPart, read_model
from together.models.gguf.parts import first_files, own_names, part_names, title_of
from together.models.gguf.table import READER
from together.models.manifest import check_small, small_files
from together.weights.hub_listing import Listing, Remote, list_hub, reached, sampled
from together.weights.hub_ranges import RemoteFile, read_range
from together.weights.imports import fill
from together.weights.part import size_of, writing
from together.weights.store import Store


@dataclass(frozen=True, slots=True)
class GgufOnHub:
    """The files of one model, in order: `listing` has them by their names in the model."""

    name: str  # `org/name/file.gguf`
    listing: Listing

    @property
    def files(self) -> Mapping[str, RemoteFile]:
        return self.listing.files


def only_gguf(listing: Listing) -> list[str]:
    """The first file of each GGUF model in a repository that has no other weights."""
    if any(name.endswith(".safetensors") for name in listing.files):
        return []
    return first_files(map(_base, listing.files))


def gguf_model(listing: Listing, file: str) -> GgufOnHub:
    """The model of which `file` is a part, or the only one without a name. Raises BadSetting or BrokenModel."""
    file = file or _only(listing)
    found = [path for path in listing.files if _base(path) == file]
    if len(found) != 1:
        raise _not_one(listing, file, found)
    folder = found[0][: -len(file)]
    names = part_names(file)
    missing = next((name for name in names if folder + name not in listing.files), None)
    if missing is not None:
        raise BrokenModel(
            "{file} is one of {count} parts, and {repo} does not have {missing} on the hub; choose another file",
            file=file,
            count=len(names),
            repo=listing.repo,
            missing=missing,
        )
    files = {own: listing.files[folder + name] for own, name in zip(own_names(file), names, strict=True)}
    return GgufOnHub(f"{listing.repo}/{names[0]}", Listing(listing.repo, listing.commit, files))


def read_gguf(model: GgufOnHub, home: Path) -> Remote:
    """The model by the headers of its files; a commit that the store in `home` has is not read again.

    Raises BrokenModel, UnsupportedModel, Unreachable, LoadFailed or DiskFull.
    """
    known = _known(model, home)
    if known is not None:
        return known
    repo, commit = model.listing.repo, model.listing.commit
    with reached(repo), tempfile.TemporaryDirectory(prefix="together-") as draft:
        begin, folder = Path(draft, "begin.gguf"), Path(draft, title_of(_base(model.name)))
        folder.mkdir()
        found = read_model(model.name, _parts(model, begin))
        fill(folder, model.name, found, begin, next(iter(model.files.values())).size)
        return Remote(model.name, commit, sampled(model.listing, found.headers), small_files(folder))


@dataclass(frozen=True, slots=True)
class GgufFileOnHub:
    """A model of a repository of GGUF files, by the name that loads it, and its bytes."""

    name: str
    bytes: int


def gguf_files(repo: str) -> tuple[GgufFileOnHub, ...]:
    """All models of a repository that are whole, the smallest first. Raises BadSetting or Unreachable."""
    listing, found = list_hub(repo), []
    for name in only_gguf(listing):
        with suppress(BadSetting, BrokenModel):
            model = gguf_model(listing, name)
            found.append(GgufFileOnHub(model.name, sum(file.size for file in model.files.values())))
    return tuple(sorted(found, key=lambda each: each.bytes))


def read_gguf_headers(model: GgufOnHub) -> GgufModel:
    """What the headers of its files say; its words are passed over. Raises as `read_gguf`."""
    with reached(model.listing.repo):
        return read_model(model.name, _parts(model, None))


# --- inside -----------------------------------------------------------------------------------------------------------


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _only(listing: Listing) -> str:
    names = only_gguf(listing)
    if len(names) == 1:
        return names[0]
    raise BadSetting(
        "{repo} has {count} GGUF models; choose one by its file, as {example}. It has {files}",
        repo=listing.repo,
        count=len(names),
        example=f"{listing.repo}/{names[0]}",
        files=tuple(names),
    )


def _not_one(listing: Listing, file: str, found: list[str]) -> BadSetting:
    if found:
        return BadSetting(
            "{repo} has {file} in several folders on the hub ({places}), which its name does not tell apart; download "
            "one and load it by its path",
            repo=listing.repo,
            file=file,
            places=tuple(found),
        )
    names = first_files(map(_base, listing.files))
    said = "{repo} has no {file} on the hub; " + ("it has {files}" if names else "it has no GGUF models")
    return BadSetting(said, repo=listing.repo, file=file, files=tuple(names))


def _parts(model: GgufOnHub, begin: Path | None) -> list[GgufPart]:
    """Of the first file, the words are in its header: what is read of it is kept in `begin`, where that is given."""
    return [
        GgufPart(own, Path(model.listing.repo, _base(file.name)), file.size, _source(file, None if index else begin))
        for index, (own, file) in enumerate(model.files.items())
    ]


def _source(file: RemoteFile, kept: Path | None) -> Source:
    def read(start: int, stop: int) -> bytes:
        data = b"".join(read_range(file, start, stop))
        if kept is not None and start == size_of(kept):
            with writing(kept.parent, file.name), kept.open("ab") as stream:
                stream.write(data)
        return data

    return read


def _known(model: GgufOnHub, home: Path) -> Remote | None:
    """What the store has of this very commit, whole and made by this reader."""
    store = Store(home)
    manifest = store.begun(model.name, model.listing.commit)
    if manifest is None or manifest.form != PUBLISHED:
        return None
    there = [(file.name, file.size) for file in manifest.files]
    made = all(f'"reader":"{READER}"'.encode() in file.header[:200] for file in manifest.files)
    if not made or there != [(own, file.size) for own, file in model.files.items()]:
        return None
    with suppress(BrokenModel):
        small = small_files(store.folder(manifest.key))
        check_small(manifest, small)
        return Remote(manifest.name, manifest.revision, manifest.files, small)
    return None
