"""The model families that run here, by `model_type`: each is proven by the conformance test."""

from __future__ import annotations

from together.errors import UnsupportedModel
from together.wording import quoted

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "qwen3_moe")


WRAPPERS = {"gemma3": "gemma3_text", "mistral3": "mistral"}  # of text and pictures: the text model's usual family


TOY = "checksum"  # a model for tests of the whole product; runs on its own backend only


def require_family(model: str, family: object) -> None:
    """Raises UnsupportedModel, with the list of what runs, unless `family` is one that real backends run."""
    if not isinstance(family, str) or family not in FAMILIES:
        known = ", ".join((*FAMILIES, *WRAPPERS))
        raise UnsupportedModel(
            f"{model} is of the family {quoted(family)}, which does not run here; choose one of {known}"
        )
