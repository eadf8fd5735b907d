"""README's table of what loads says what the tests here prove."""

from __future__ import annotations

import pytest

pytest.importorskip("mlx.core")

from tests.support.families import MORE
from tests.support.loads import FAMILIES, FAMILY_FORMS, MODELS, README, family_table, listed, rows, table, table_in
from together.models.config import FAMILIES as SUPPORTED
from together.models.gguf.kinds import PACKINGS


def test_documents_have_the_tables_that_the_tests_make() -> None:
    """Else: `.venv/bin/python -m tests.support.loads --listed`."""
    assert table_in(README.read_text(encoding="utf-8"), "family") == family_table(listed())
    assert table_in(MODELS.read_text(encoding="utf-8"), "format of weights") == table(listed())


def test_a_family_is_marked_by_the_backends_that_ran_all_its_cases() -> None:
    every = listed()
    lines = family_table(every - {("affine-4", "qwen3", "mlx"), ("plain", "llama-tied", "torch")}).splitlines()
    cells = {line.split(" | ")[0].removeprefix("| "): line.removesuffix(" |").split(" | ")[1:] for line in lines}
    assert cells["Qwen3"][list(FAMILY_FORMS).index("4 bit")] == "PyTorch"
    assert cells["Llama"][list(FAMILY_FORMS).index("plain")] == "MLX"
    assert set(cells["Qwen2"]) == {"✓"}


def test_a_mark_needs_every_case_of_its_format() -> None:
    proven = {(name, "qwen2", "") for row in rows() for name in row.formats} - {("affine-8", "qwen2", "")}
    lines = [line.split(" | ") for line in table(proven).splitlines()[2:]]
    column = list(FAMILIES).index("qwen2") + 1
    found = {line[0].removeprefix("| "): line[column] for line in lines}
    assert found.pop("MLX, 4 and 8 bits") == "○"
    assert set(found.values()) == {"✓"}
    assert {cell.rstrip(" |") for line in lines for cell in line[1:column] + line[column + 1 :]} == {"○"}


def test_every_family_and_every_type_stands_in_it() -> None:
    assert set(FAMILIES) == set(SUPPORTED) - {case.family for case in MORE}
    formats = {name for row in rows() for name in row.formats}
    assert {f"gguf-{kind}" for kind in PACKINGS} <= formats
    assert {name for name, _, _ in listed()} == formats | set(FAMILY_FORMS.values())
