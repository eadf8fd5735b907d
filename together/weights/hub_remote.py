"""What the hub says of a model in either format, safetensors or GGUF, and which of its files the model has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from together.models.names import is_model_name, repository
from together.weights.hub_gguf import gguf_model, only_gguf, read_gguf
from together.weights.hub_listing import Listing, Remote, list_hub, read_published
from together.weights.short_names import note_only


def read_remote(name: str, home: Path, revision: str | None = None, small: Sequence[str] | None = None) -> Remote:
    """The small files, headers and samples of a model; writes only to `home/hub`.

    `small` names the small files of a repository with safetensors, by default all that a model has besides its weights;
    those of a GGUF file are made of its header. Samples that the store in `home` has of this commit are not fetched
    again. A repository that has but one GGUF model stands for it. Raises BadSetting (name, licence, token, which file),
    Unreachable, UnsupportedModel, BrokenModel, LoadFailed or DiskFull.
    """
    repo, file = _named(name)
    listing = list_hub(repo, revision)
    models = only_gguf(listing)
    if revision is None:
        note_only(repo, models[0] if len(models) == 1 else "", home)
    if file or models:
        return read_gguf(gguf_model(listing, file), home)
    return read_published(listing, home, small)


def list_model(name: str, revision: str | None = None) -> Listing:
    """The files of a model at its newest commit, or at this one, by their names in the model. Raises as `list_hub`."""
    repo, file = _named(name)
    listing = list_hub(repo, revision)
    return gguf_model(listing, file).listing if file else listing


def _named(name: str) -> tuple[str, str]:
    """Repository and file; what is no name stays whole, for `list_hub` to refuse."""
    return repository(name) if is_model_name(name) else (name, "")
