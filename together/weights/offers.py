"""Models that other programs of this machine keep, and GGUF files in the app's own folder: found by names alone.

None is read before it is chosen; then it runs from where it lies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from together.models.gguf.parts import title_of
from together.models.names import is_gguf, model_name
from together.weights.imports import imported
from together.weights.listing import Reach, folders_in, gguf_models, weights_in, whole_folder
from together.weights.ollama import short_name, tags_in
from together.weights.places import hub_cache, hub_snapshots, llama_cpp_folders, lm_studio_folders, ollama_folders

LM_STUDIO, OLLAMA, LLAMA_CPP, HUB = "LM Studio", "Ollama", "llama.cpp", "Hugging Face"
_DEPTH = 4  # of folders below that of a program; LM Studio has two, some repositories one more


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that is here and was not read; `program` is empty for the app's own.

    `path` is what stands for it alone: Ollama's manifest, else the weights. `weights` is its first GGUF file, or a
    folder of safetensors. `title` is what a GGUF model is called once it is read, as a file need not have a name.
    """

    program: str
    name: str
    path: Path
    weights: Path
    bytes: int
    title: str = ""

    @property
    def names(self) -> set[str]:
        """What a person may call it, in small letters, beside its name."""
        last = self.name.rpartition("/")[2]
        repository = self.name.rpartition("/")[0] if is_gguf(last) and self.program != HUB else ""
        short = [name[: -len(".gguf")] if is_gguf(name) else short_name(name) for name in (self.name, last)]
        return {name.lower() for name in (last, repository, self.title, *short) if name}


def offers(home: Path) -> list[Offer]:
    """All of them, by name. Blocking; each program's folder is looked at for a limited time."""
    found = [*_own(home), *_lm_studio(), *_ollama(), *_llama_cpp(), *_hub()]
    return sorted({offer.path: offer for offer in reversed(found)}.values(), key=lambda one: (one.name, one.program))


def offers_named(text: str, found: list[Offer]) -> list[Offer]:
    """Those that `text` names: by their whole names, else by what people shorten them to."""
    wanted = text.lower()
    exact = [offer for offer in found if offer.name.lower() == wanted]
    return exact or [offer for offer in found if wanted in offer.names]


def offer_at(path: Path, found: list[Offer]) -> Offer | None:
    """The one that `path` stands for, or the first whose weights it is."""
    place = path.absolute().parent.resolve() / path.name
    stands = next((offer for offer in found if offer.path == place), None)
    return stands or next((offer for offer in found if offer.weights == path.resolve()), None)


def chosen(offer: Offer, home: Path) -> Path:
    """The folder of a model that was offered. Raises what `imported` raises."""
    return imported(offer.weights, home, offer.title) if offer.title else offer.weights


def _own(home: Path) -> Iterator[Offer]:
    for folder, sizes, place in _weights(home / "models", Reach()):
        yield from _gguf("", folder, sizes, place)


def _lm_studio() -> Iterator[Offer]:
    for root in lm_studio_folders(Path.home(), os.environ):
        for folder, sizes, place in _weights(root, Reach()):
            yield from _gguf(LM_STUDIO, folder, sizes, place)
            whole = whole_folder(folder, sizes)
            if whole is not None and place.parts:
                yield Offer(LM_STUDIO, place.as_posix(), folder, folder, whole.bytes)


def _ollama() -> Iterator[Offer]:
    for root in ollama_folders(Path.home(), os.environ):
        for tag in tags_in(root, Reach()):
            yield Offer(OLLAMA, tag.name, tag.manifest, tag.blob, tag.bytes, model_name(short_name(tag.name)))


def _llama_cpp() -> Iterator[Offer]:
    for root in llama_cpp_folders(Path.home(), os.environ):
        for folder, sizes, place in _weights(root, Reach()):
            yield from _gguf(LLAMA_CPP, folder, sizes, place)


def _hub() -> Iterator[Offer]:
    cache, reach = hub_cache(), Reach()
    for root in sorted(cache.glob("models--*")):
        name = root.name.removeprefix("models--").replace("--", "/", 1)
        of_model: dict[tuple[Path, str], Offer] = {}  # the same file may be in several snapshots
        for snapshot in hub_snapshots(cache, name):
            for folder, sizes, place in _weights(snapshot, reach, cache):
                for offer in _gguf(HUB, folder, sizes, Path(name)):  # as on the hub, without the folders there
                    of_model.setdefault((place, offer.name), offer)
        yield from of_model.values()


def _weights(root: Path, reach: Reach, within: Path | None = None) -> Iterator[tuple[Path, dict[str, int], Path]]:
    """Each folder below `root`, the sizes of its weights that lie in `within`, and its place in `root`."""
    top, outer = Path(os.path.realpath(root)), Path(os.path.realpath(within or root))
    for folder, files in folders_in(top, _DEPTH, reach):
        yield folder, weights_in(files, outer), folder.relative_to(top)


def _gguf(program: str, folder: Path, sizes: Mapping[str, int], place: Path) -> Iterator[Offer]:
    for one in gguf_models(folder, sizes):
        name = (place / one.path.name).as_posix()
        yield Offer(program, name, one.path, one.path, one.bytes, title_of(one.path.name))
