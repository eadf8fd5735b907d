"""The tables of what loads, made from tests/backends: README's of families, and docs/models.md's of formats.

`.venv/bin/python -m tests.support.loads --full` runs those tests and writes the tables of what passed; with `--listed`
in place of `--full` it runs none and takes their parameters. A mark stands where every case passed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet

from tests.support.families import CASES, MORE
from together.models.families import BY_NAME as BY_FAMILY

ROOT = Path(__file__).resolve().parents[2]
README, MODELS = ROOT / "README.md", ROOT / "docs" / "models.md"
FAMILY_FORMS = {"plain": "plain", "8 bit": "affine-8", "6 bit": "affine-6-g64", "4 bit": "affine-4", "mxfp4": "mxfp4"}
GGUF = "gguf-mixed"
BACKENDS = {"torch": "PyTorch", "mlx": "MLX"}
FAMILIES = {  # of the table of formats
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mistral": "Mistral",
    "gemma3_text": "Gemma 3",
    "qwen3_moe": "Qwen3-MoE",
}
OTHERS = {  # formats of `foreign_folders.py`, by what they are called here
    "GPTQ and AWQ, 4 bits": ("gptq-4", "awq"),
    "GPTQ 2 and 8 bits, by channel or `gptq_v2`; AWQ without a declaration": (
        "gptq-2", "gptq-8", "gptq-4-channel", "gptq-v2", "awq-undeclared",
    ),
    "compressed-tensors, 4 bits": ("int4",),
    "compressed-tensors asymmetric, by channel, 8 bits, nvfp4": (
        "int4-asymmetric", "int4-channel", "int8-packed", "int8", "nvfp4",
    ),
    "FP8 in squares of 128": ("fp8-blocks",),
    "FP8 by channel, by tensor, or in compressed-tensors' squares": (
        "fp8-channel", "fp8-tensor", "fp8-compressed-blocks",
    ),
}  # fmt: skip
ANY = ""  # in the place of a backend: what a test compares in no ring of one backend alone
Case = tuple[str, str, str]  # as tests have it: a format, a family's configuration, a backend that computes alone


@dataclass(frozen=True)
class Row:
    """A format for a person, and what tests call it."""

    title: str
    formats: tuple[str, ...]


@dataclass(frozen=True)
class Proof:
    """A parametrized test that compares a family in a format with transformers."""

    module: str
    function: str
    case: Callable[[dict[str, Any]], Case]

    @property
    def place(self) -> str:
        return f"tests/backends/{self.module}.py::{self.function}"


def _quantized(given: dict[str, Any]) -> Case:
    form, name, ring, _ = given["case"]
    return form, name, _alone(ring)


def _alone(ring: Sequence[str]) -> str:
    """The backend of a ring that has no other."""
    return ring[0] if len(set(ring)) == 1 else ANY


PROOFS = (
    Proof("test_conformance", "test_whole_model", lambda given: ("plain", given["name"], given["backend"])),
    Proof("test_conformance", "test_an_inner_cut", lambda given: ("plain", given["name"], given["backend"])),
    Proof("test_quantized", "test_a_cut_of_each", _quantized),
    Proof("test_quantized", "test_every_cut", _quantized),
    Proof("test_gguf", "test_every_family_in_mixed_types", lambda given: (GGUF, given["name"], _alone(given["pair"]))),
    Proof("test_gguf", "test_every_type", lambda given: (f"gguf-{given['kind']}", given["name"], ANY)),
    Proof("test_foreign", "test_every_format", lambda given: (f"other-{given['format']}", given["name"], ANY)),
    Proof("test_foreign", "test_on_every_backend", lambda given: (f"other-{given['format']}", given["name"], ANY)),
    Proof("test_foreign", "test_every_family", lambda given: (f"other-{given['format']}", given["name"], ANY)),
)


def rows() -> list[Row]:
    kinds = import_module("together.models.gguf.kinds").PACKINGS
    return [
        Row("bf16, fp16, fp32", ("plain",)),
        Row("MLX, 4 and 8 bits", ("affine-4", "affine-8")),
        Row("MLX, 3 to 6 bits mixed", ("mixed",)),
        Row("MLX, mxfp4 and nvfp4", ("mxfp4", "nvfp4")),
        Row("GGUF as Q4_K_M: Q4_K and Q6_K with F32, F16, BF16", (GGUF,)),
        Row(f"GGUF {', '.join(kinds)}", tuple(f"gguf-{kind}" for kind in kinds)),
        *(Row(title, tuple(f"other-{name}" for name in formats)) for title, formats in OTHERS.items()),
    ]


def listed() -> set[Case]:
    """What the tests would prove, by their parameters."""
    return {proof.case(given) for proof in PROOFS for given in _cases(_function(proof))}


def family_table(proven: set[Case]) -> str:
    """In Markdown: a row for each family, a column for each form, and one for GGUF files."""
    columns = (*FAMILY_FORMS, "GGUF")
    lines = [f"| family | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    files = {name for form, name, _ in listed() if form == GGUF}
    for family in sorted(BY_FAMILY.values(), key=lambda family: family.title.lower()):
        names = {case.name for case in (*CASES, *MORE) if case.family == family.name}
        cells = [_backends({(form, name) for name in names}, proven) for form in FAMILY_FORMS.values()]
        cells.append(_backends({(GGUF, name) for name in names & files}, proven))
        lines.append(f"| {family.title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _backends(wanted: set[tuple[str, str]], proven: set[Case]) -> str:
    """Those that alone ran every case of a family in a form."""
    able = [word for name, word in BACKENDS.items() if wanted and all((*case, name) in proven for case in wanted)]
    return "✓" if len(able) == len(BACKENDS) else ", ".join(able) or "–"


def table(proven: set[Case]) -> str:
    """In Markdown: a row for each format, a column for each family."""
    known = {(form, name) for form, name, _ in proven}
    lines = [f"| format of weights | {' | '.join(FAMILIES.values())} |", f"|---|{'---|' * len(FAMILIES)}"]
    for row in rows():
        marks = [_mark([(name, family) in known for name in row.formats]) for family in FAMILIES]
        lines.append(f"| {row.title} | {' | '.join(marks)} |")
    return "\n".join(lines) + "\n"


def table_in(text: str, first: str) -> str:
    """The table that stands in a document, by its first column's name."""
    start = text.index(f"| {first} | ")
    return text[start : text.index("\n\n", start) + 1]


# --- inside -----------------------------------------------------------------------------------------------------------


class _Outcomes:
    """A plugin of pytest: which cases ran, and which of them failed or were left out."""

    def __init__(self) -> None:
        self._cases: dict[str, Case] = {}
        self._failed: set[Case] = set()
        self._passed: set[Case] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            proof = next((one for one in PROOFS if item.nodeid.startswith(f"{one.place}[")), None)
            if proof is not None:
                self._cases[item.nodeid] = proof.case(item.callspec.params)  # type: ignore[attr-defined]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        case = self._cases.get(report.nodeid)
        if case is not None and report.failed:
            self._failed.add(case)
        elif case is not None and report.when == "call" and report.passed:
            self._passed.add(case)

    @property
    def proven(self) -> set[Case]:
        return self._passed - self._failed


def _function(proof: Proof) -> Any:
    return getattr(import_module(f"tests.backends.{proof.module}"), proof.function)


def _cases(function: Any) -> Iterator[dict[str, Any]]:
    """Every set of arguments that its marks give it."""
    marks = [mark.args for mark in function.pytestmark if mark.name == "parametrize"]
    for chosen in product(*(_arguments(*args[:2]) for args in marks)):
        yield {name: value for given in chosen for name, value in given.items()}


def _arguments(names: str | tuple[str, ...], values: Iterable[Any]) -> list[dict[str, Any]]:
    if isinstance(names, str):
        return [{names: value.values[0] if isinstance(value, ParameterSet) else value} for value in values]
    plain = (value.values if isinstance(value, ParameterSet) else value for value in values)
    return [dict(zip(names, value, strict=True)) for value in plain]


def _mark(proofs: list[bool]) -> str:
    return "✓" if all(proofs) else "○"


def _passed(*options: str) -> set[Case]:
    outcomes = _Outcomes()
    pytest.main([*dict.fromkeys(proof.place for proof in PROOFS), "-q", "-n", "0", *options], plugins=[outcomes])
    return outcomes.proven


def main() -> None:
    options = sys.argv[1:]
    proven = listed() if "--listed" in options else _passed(*options)
    for file, first, made in ((README, "family", family_table(proven)), (MODELS, "format of weights", table(proven))):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(table_in(text, first), made), encoding="utf-8")
        print(made)


if __name__ == "__main__":
    main()
