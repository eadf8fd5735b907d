"""Which files are a model's weights: an index is a hint, the files that are there decide."""

from __future__ import annotations

import pytest

from together.errors import BrokenModel
from together.models.checkpoint import choose_files
from together.models.names import EMBED, HEAD, NORM

SINGLE = "model.safetensors"


def parts(count: int, *gone: int) -> list[str]:
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1) if i not in gone]


TWO, THREE = parts(2), parts(3)
A, B = "a.safetensors", "b.safetensors"
INDEX = {EMBED: THREE[0], NORM: THREE[1], HEAD: THREE[2]}


@pytest.mark.parametrize(
    ("there", "index", "chosen"),
    [
        ([SINGLE, *THREE], INDEX, [SINGLE]),
        (THREE, INDEX, THREE),
        ([*THREE, "consolidated.safetensors", "adapter_model.safetensors"], INDEX, THREE),
        ([B, A, SINGLE[:-1]], {EMBED: B, NORM: A}, [A, B]),
        (THREE, None, THREE),  # no index
        (parts(1), None, parts(1)),
        (["consolidated.safetensors", *TWO], None, TWO),
        (parts(1), {EMBED: TWO[0], NORM: TWO[1]}, parts(1)),  # stale
        ([*THREE, TWO[0]], {EMBED: TWO[0], NORM: TWO[1]}, THREE),
        (THREE, {EMBED: THREE[0]}, THREE),  # partial
        (THREE[:2], INDEX, THREE[:2]),  # the head's file: whether it is needed shows later
        (THREE[:2], {EMBED: THREE[0], NORM: THREE[1], "vision_tower.x": THREE[2]}, THREE[:2]),
        (["weights.safetensors", "config.json"], None, ["weights.safetensors"]),
        (["pytorch_model.bin", "adapter_model.safetensors"], None, []),
        ([], None, []),
    ],
)  # fmt: skip
def test_files_that_are_chosen(there: list[str], index: dict[str, str] | None, chosen: list[str]) -> None:
    assert choose_files("m", there, index) == tuple(chosen)


@pytest.mark.parametrize(
    ("there", "index", "named"),
    [
        (parts(3, 2), None, THREE[1]),
        (parts(3, 1), INDEX, THREE[0]),
        (parts(5, 2, 4), None, "model-00004-of-00005.safetensors"),
        (["config.json"], INDEX, THREE[0]),
        ([*TWO, *THREE], None, "model-…-of-2, model-…-of-3"),
    ],
)
def test_what_is_missing_is_named(there: list[str], index: dict[str, str] | None, named: str) -> None:
    with pytest.raises(BrokenModel) as caught:
        choose_files("m", there, index)
    assert named in str(caught.value)
