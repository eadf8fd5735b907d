"""What the hub says of a model: its files at one commit, its small files, headers and samples of its weights.

Fetches no other weights, and writes only the library's cache of small files. Blocking: call it from a thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils.tqdm import silent_tqdm

from together.errors import BadSetting, BrokenModel, Unreachable, UnsupportedModel
from together.models.checkpoint import SINGLE, choose_files, weight_map
from together.models.folder import INDEX, most_bytes, without_weights
from together.models.headers import MAX_HEADER, FileHeader, Headers, header_length
from together.models.manifest import CONFIG, small_names
from together.models.names import MAX_NAME, is_gguf, is_model_name, is_plain, is_template
from together.models.units import ByteRange, PublishedFile, sample_places
from together.sentences import template
from together.weights.hub_ranges import RemoteFile, endpoint, explained, read_range, unreachable
from together.weights.store import Store
from together.wording import quoted

STREAMS = 4  # headers, small files or units fetched at once
SAMPLE_STREAMS = 8  # of samples, which have next to no bytes
NEAR = 4096  # bytes between samples that one request fetches together
ANSWER_WITHIN = 15.0  # seconds
_COMMIT = re.compile(r"[0-9a-f]{7,64}")


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at one commit, by name."""

    repo: str
    commit: str
    files: Mapping[str, RemoteFile]


@dataclass(frozen=True, slots=True)
class Remote:
    """All that is known of a model on the hub without its weights."""

    name: str
    revision: str  # the commit
    files: tuple[PublishedFile, ...]
    small: dict[str, bytes]


def read_published(listing: Listing, home: Path, small: Sequence[str] | None = None) -> Remote:
    """The files named in `small`, the safetensors headers and samples of a repository; writes only to `home/hub`.

    Without `small`, all that a model has besides its weights. Samples that the store in `home` has of this commit are
    not fetched again. Raises Unreachable, UnsupportedModel (no safetensors) or BrokenModel.
    """
    headers, found = read_headers(listing, home, small)
    with reached(listing.repo):
        files = _known(listing, headers, home) or sampled(listing, headers)
    return Remote(listing.repo, listing.commit, files, found)


def read_headers(
    listing: Listing, home: Path, small: Sequence[str] | None = None
) -> tuple[tuple[FileHeader, ...], dict[str, bytes]]:
    """The same without samples: what a model takes, and not yet which one it is."""
    repo_id = listing.repo
    if CONFIG not in listing.files:
        message = "{repo} has no {file} on the hub, so it is no model that runs here; choose another"
        raise UnsupportedModel(without_weights(repo_id, listing.files) or template(message, repo=repo_id, file=CONFIG))
    if not any(name.endswith(".safetensors") for name in listing.files):
        _weights(listing, None)  # says what is there instead
    names = small_names(listing.files) if small is None else small
    wanted = [name for name in (*names, INDEX) if name in listing.files]
    with ThreadPoolExecutor(STREAMS, "hub") as pool, reached(repo_id):
        found = dict(zip(wanted, pool.map(lambda name: _small(listing.files[name], home), wanted), strict=True))
        return _headers(_weights(listing, found.pop(INDEX, None)), pool), found


def list_hub(repo_id: str, revision: str | None = None) -> Listing:
    """What is in a repository, at its newest commit or a given one. Raises BadSetting or Unreachable."""
    if not is_model_name(repo_id) or repo_id.count("/") > 1 or not (revision is None or is_plain(revision)):
        raise _no_name(repo_id)
    with reached(repo_id):
        try:
            info = HfApi(endpoint=endpoint()).model_info(
                repo_id, revision=revision, files_metadata=True, timeout=ANSWER_WITHIN
            )
        except HFValidationError as error:
            raise _no_name(repo_id) from error
        except (KeyError, TypeError, ValueError) as error:
            raise _no_hub() from error
    if not info.sha or not _COMMIT.fullmatch(info.sha):
        raise _no_hub()
    found = (
        RemoteFile(repo_id, info.sha, item.rfilename, item.size or 0, item.lfs.sha256 if item.lfs else "")
        for item in info.siblings or ()
    )
    safe = (file for file in found if is_plain(file.name) or is_template(file.name) or _is_nested_gguf(file.name))
    return Listing(repo_id, info.sha, {file.name: file for file in safe})


def _is_nested_gguf(name: str) -> bool:
    """Those that are split have folders of their own."""
    return is_gguf(name) and all(map(is_plain, name.split("/"))) and len(name) <= MAX_NAME


@contextmanager
def reached(repo: str) -> Iterator[None]:
    """`explained`, and a connection that cannot be made is a sentence too."""
    try:
        with explained(repo):
            yield
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise unreachable(repo, error) from error


# --- inside -----------------------------------------------------------------------------------------------------------


def _no_name(repo_id: str) -> BadSetting:
    message = "{repo} is not the name of a model on the hub, as org/name; check the spelling"
    return BadSetting(message, repo=quoted(repo_id))


def _no_hub() -> Unreachable:
    return Unreachable("{hub} does not answer as a hub does; check HF_ENDPOINT", hub=endpoint())


def _weights(listing: Listing, index: bytes | None) -> list[RemoteFile]:
    """The model's safetensors files. Raises BrokenModel where one is missing, UnsupportedModel where there are none."""
    names = choose_files(listing.repo, listing.files, _places(listing, index))
    if not names:
        message = "{repo} has no {file} on the hub; choose a version of it with safetensors"
        raise UnsupportedModel(
            without_weights(listing.repo, listing.files) or template(message, repo=listing.repo, file=SINGLE)
        )
    return [listing.files[name] for name in names]


def _places(listing: Listing, index: bytes | None) -> dict[str, str] | None:
    """Tensor → file by the index. Raises BrokenModel for one that is none."""
    if index is None or SINGLE in listing.files:
        return None
    places = weight_map(Path(listing.repo, INDEX), index)
    strange = min((name for name in set(places.values()) if not is_plain(name)), default=None)
    if strange is not None:
        message = "{source} of {repo} names {name}, no plain file name; choose another model"
        raise BrokenModel(message, source=INDEX, repo=listing.repo, name=quoted(strange))
    return places


def _headers(files: Sequence[RemoteFile], pool: ThreadPoolExecutor) -> tuple[FileHeader, ...]:
    """The files' checked headers by two ranges of each, however large the files are. Raises BrokenModel."""
    lengths = list(pool.map(_header_length, files))
    if sum(lengths) > MAX_HEADER:
        message = "the headers of {repo} have more than {most} bytes; choose another model"
        raise BrokenModel(message, repo=files[0].repo, most=MAX_HEADER)
    raw = pool.map(lambda file, length: b"".join(read_range(file, 8, 8 + length)), files, lengths)
    model = Headers()
    return tuple(
        model.check(Path(file.repo, file.name), header, file.size) for file, header in zip(files, raw, strict=True)
    )


def _header_length(file: RemoteFile) -> int:
    return header_length(Path(file.repo, file.name), b"".join(read_range(file, 0, min(8, file.size))), file.size)


def _known(listing: Listing, headers: Sequence[FileHeader], home: Path) -> tuple[PublishedFile, ...]:
    """The files as the store has them, if it has this commit with these very headers; else none."""
    known = Store(home).published(listing.repo, listing.commit)
    same = [(file.name, file.size, file.header) for file in known] == [(h.file.name, h.size, h.raw) for h in headers]
    return known if same else ()


def sampled(listing: Listing, headers: Sequence[FileHeader]) -> tuple[PublishedFile, ...]:
    """The files with samples of their weights, by a few small ranges of each. Raises as `read_range` does."""
    places = sample_places(headers)
    spans = [span for header in headers for span in _joined(places[header.file.name])]
    with ThreadPoolExecutor(SAMPLE_STREAMS, "hub") as pool:
        parts = pool.map(lambda span: b"".join(read_range(listing.files[span.file], span.start, span.stop)), spans)
        fetched = list(zip(spans, parts, strict=True))
    return tuple(
        PublishedFile(header.file.name, header.size, header.raw, _cut(places[header.file.name], fetched))
        for header in headers
    )


def _joined(places: Sequence[ByteRange]) -> list[ByteRange]:
    """Ranges that have all places of one file; near ones are one range."""
    spans: list[ByteRange] = []
    for place in places:
        if spans and place.start - spans[-1].stop <= NEAR:
            spans[-1] = ByteRange(place.file, spans[-1].start, place.stop)
        else:
            spans.append(place)
    return spans


def _cut(places: Sequence[ByteRange], fetched: Sequence[tuple[ByteRange, bytes]]) -> bytes:
    """The bytes at `places`, out of ranges that have them."""
    return b"".join(
        data[place.start - span.start : place.stop - span.start]
        for place in places
        for span, data in fetched
        if span.file == place.file and span.start <= place.start < span.stop
    )


def _small(file: RemoteFile, home: Path) -> bytes:
    """A small file through the library and its cache format, in the app's own home."""
    most = most_bytes(file.name)
    if file.size > most:
        message = "{file} has {size} bytes, more than {most}; choose another model"
        raise BrokenModel(message, file=str(file), size=file.size, most=most)
    path = hf_hub_download(
        file.repo,
        file.name,
        revision=file.revision,
        cache_dir=home / "hub",
        endpoint=endpoint(),
        etag_timeout=ANSWER_WITHIN,
        tqdm_class=silent_tqdm,  # commands have their own bars
    )
    with open(path, "rb") as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise BrokenModel("{file} has more than {most} bytes; choose another model", file=str(file), most=most)
    return data
