"""How a model sees pictures: its vision tower, and where the parts of a picture stand in a text. Pure.

A picture is cut into squares of `side` pixels, each of which stands for a token of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from together.picture import Picture

MOST_PARTS = 1280  # of a picture, a token each; a larger one is made smaller
SEEING = ("torch",)  # backends whose first stages see
TOWER = "model.visual."  # what the names of its tensors begin with


@dataclass(frozen=True, slots=True)
class Eyes:
    """Numbers of a tower that runs here."""

    patch: int  # pixels of a square that the tower reads at once
    merge: int  # of such squares, in a row, that one token stands for
    token: int  # the id of that token
    width: int  # of the tower's states, at their widest within a layer
    layers: int  # of the language model that the tower gives something to

    @property
    def side(self) -> int:
        """Pixels of the side of a square that one token stands for."""
        return self.patch * self.merge


def eyes_of(config: Mapping[str, Any], stored: Iterable[str], packed: Iterable[str]) -> Eyes | None:
    """Of a model with these tensors by an effective configuration; None where it has no tower, or a packed one."""
    vision = config.get("vision_config")
    if not vision or not any(map(is_tower, stored)) or any(map(is_tower, packed)):
        return None
    return Eyes(
        patch=vision["patch_size"],
        merge=vision["spatial_merge_size"],
        token=config["image_token_id"],
        width=max(vision["intermediate_size"], 4 * vision["hidden_size"]),
        layers=len(vision["deepstack_visual_indexes"]),
    )


def is_tower(name: str) -> bool:
    return name.startswith(TOWER)


def positions_of(pictures: Iterable[Picture], start: int, stop: int) -> tuple[tuple[int, ...], ...]:
    """On each axis the positions of a sequence's tokens from `start` to `stop`.

    A text goes on by one on all axes; a picture's parts share the time of its beginning and lie at their row and
    column from there; what follows goes on behind the larger side. It is transformers' `get_rope_index`.
    """
    axes: tuple[list[int], ...] = ([], [], [])
    at = shift = 0  # the next token, and how far positions are behind tokens
    for picture in pictures:
        _text(axes, range(max(at, start), min(picture.offset, stop)), shift)
        first, end = picture.offset, picture.offset + picture.tokens
        for token in range(max(first, start), min(end, stop)):
            row, column = divmod(token - first, picture.columns)
            for axis, more in zip(axes, (0, row, column), strict=True):
                axis.append(first - shift + more)
        at, shift = end, shift + picture.tokens - max(picture.rows, picture.columns)
    _text(axes, range(max(at, start), stop), shift)
    return tuple(map(tuple, axes))


def _text(axes: tuple[list[int], ...], tokens: range, shift: int) -> None:
    for axis in axes:
        axis.extend(token - shift for token in tokens)
