"""The families that run here: each module has one, or several that differ in little. Pure.

A new family is a new module; nothing else lists it.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from together.models.family import Family


def _found() -> dict[str, Family]:
    modules = sorted(module.name for module in iter_modules(__path__))
    each = (import_module(f"{__name__}.{name}").FAMILIES for name in modules)
    return {family.name: family for families in each for family in families}


BY_NAME: dict[str, Family] = _found()
ALIASES: dict[str, str] = {alias: family.name for family in BY_NAME.values() for alias in family.aliases}
WRAPPERS: dict[str, str] = {wrapper: family.name for family in BY_NAME.values() for wrapper in family.wrappers}
