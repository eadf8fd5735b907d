"""How large the program is, as `launch.py check` prints it: files, lines, lines of code; and which files are too long.

python -m tests.support.sizes
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ("together", "backends", "webui")
EVERYTHING = (*PROGRAM, "installer", "examples", "tests")
LONGEST = 400  # lines of a file


@dataclass(frozen=True, slots=True)
class Size:
    """One module: `code` counts no blank lines, docstrings, imports and lines that hold a comment alone."""

    name: str
    lines: int
    code: int


def sources(*folders: str) -> Iterator[Path]:
    """Every Python file below these folders of the checkout, without what protoc makes."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not path.stem.endswith(("_pb2", "_pb2_grpc")):
                yield path


def size_of(path: Path) -> Size:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    apart = _apart(ast.parse(text))
    code = [line for number, line in enumerate(lines, 1) if number not in apart and line.strip()]
    return Size(path.relative_to(ROOT).as_posix(), len(lines), sum(not line.lstrip().startswith("#") for line in code))


def _apart(tree: ast.Module) -> set[int]:
    """The lines of docstrings and imports."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                found.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return found


def too_long() -> list[str]:
    files = [*sources(*EVERYTHING), ROOT / "launch.py"]
    return [f"{size.name}: {size.lines} lines" for size in map(size_of, files) if size.lines > LONGEST]


def main() -> int:
    """Print the sizes of the program; 1 where a file is too long."""
    sizes = [size_of(path) for path in sources(*PROGRAM)]
    lines, code = sum(size.lines for size in sizes), sum(size.code for size in sizes)
    print(f"{len(sizes)} files, {lines:,} lines, {code:,} lines of code in {', '.join(PROGRAM)}")
    long = too_long()
    for sentence in long:
        print(f"{sentence}; at most {LONGEST}: split it by subject")
    return 1 if long else 0


if __name__ == "__main__":
    sys.exit(main())
