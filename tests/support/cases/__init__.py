"""Tiny configurations of families, one module for each: what every test of families is given.

The first families stand in `tests/support/families.py`; all others are found here by themselves.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from tests.support.case import Case


def found() -> tuple[Case, ...]:
    modules = sorted(module.name for module in iter_modules(__path__))
    return tuple(case for name in modules for case in import_module(f"{__name__}.{name}").CASES)
