"""What a kind of machine is, and which one a person means by `Mac mini M4 16 GB` or `8 cores AVX2`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from together.errors import BadSetting
from together.planning.fields import near_names, shown
from together.sentences import Sentence, template


class Memory(Enum):
    """Whose memory it is: how much of it layers may have depends on that."""

    OWN = "own"  # a graphics card's: all but the driver and the screen
    APPLE = "apple"  # shared; Metal gives a GPU two thirds, or three quarters where there is much
    SHARED = "shared"  # the same of other makers
    SYSTEM = "system"  # a processor's: the system and other programs need some

    def usable(self, gb: float) -> float:
        """GB of `gb` that layers may have, as a rule of thumb; nobody publishes this."""
        if self is Memory.OWN:
            return 0.94 * gb
        return gb * (0.67 if self is Memory.APPLE and gb < 36 else 0.75)


@dataclass(frozen=True, slots=True)
class Kind:
    """Published figures: GB that it is sold with (empty: any), GB/s, dense fp16 TFLOP/s, and their source."""

    name: str
    memory: Memory
    sizes: tuple[float, ...]
    gb_per_s: float
    tflops: float
    source: str
    other_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NamedKind:
    """A kind as a person named it; `gb` is None where the name leaves its memory open."""

    kind: Kind
    gb: float | None


CORE_GB_PER_S, MOST_GB_PER_S = 16, 51.2  # what a core can ask for; two channels of DDR4-3200
CORES = {"AVX2": 0.096, "AVX-512": 0.192, "NEON": 0.048}  # TFLOP/s of a core: 32, 64, 16 operations at 3 GHz
CORES_SOURCE = (
    "operations of two multiply-adds a cycle at 3 GHz; 16 GB/s a core, at most those of two channels of DDR4-3200 "
    "(2 cores of a server decode at 22 GB/s: bench decode)"
)
_GB = re.compile(r"\b([0-9]{1,6}(?:\.[0-9]{1,3})?) ?(GB|TB)\b", re.IGNORECASE)
_COUNT = re.compile(r"\b([0-9]{1,4})[ -]?cores?\b", re.IGNORECASE)
_PRODUCTS = re.compile(
    r"\b(macbook (pro|air)|mac (mini|studio|pro)|imac|apple|nvidia|geforce|amd|radeon|intel|graphics|gpu|cpu)\b"
)


def find_kind(text: str, kinds: Iterable[Kind], gb: float | None = None) -> NamedKind | None:
    """The kind that `text` names, with its memory; `gb` is known otherwise. None where there is no such kind.

    Raises BadSetting for a size that it is not sold with.
    """
    size = _GB.search(text)
    wanted = gb if gb is not None or size is None else float(size[1]) * (1000 if size[2].upper() == "TB" else 1)
    name = _GB.sub(" ", text)
    found = [kind for kind in kinds if _key(name) in map(_key, (kind.name, *kind.other_names))]
    if not found:
        return _by_cores(name, wanted)
    sold = tuple(size for kind in found for size in kind.sizes)
    if wanted is None:
        return NamedKind(found[0], sold[0] if len(sold) == 1 else None)
    fits = next((kind for kind in found if not kind.sizes or wanted in kind.sizes), found[0])
    if gb is None and sold and wanted not in sold:
        raise BadSetting(
            "{kind} comes with {sold}, not with {gb}; for another size write memory = {quoted} beside it",
            kind=fits.name,
            sold=tuple(f"{size:g} GB" for size in sold),
            gb=f"{wanted:g} GB",
            quoted=f'"{wanted:g} GB"',
        )
    return NamedKind(fits, wanted)


def _by_cores(name: str, gb: float | None) -> NamedKind | None:
    """`8 cores AVX2`: what is assumed of any processor with these instructions."""
    count = _COUNT.search(name)
    rest = _key(_COUNT.sub(" ", name))
    for instructions, tflops in CORES.items():
        if count and int(count[1]) and rest == _key(instructions):
            cores, title = int(count[1]), f"{int(count[1])} cores {instructions}"
            speed = min(cores * CORE_GB_PER_S, MOST_GB_PER_S)
            return NamedKind(Kind(title, Memory.SYSTEM, (), speed, cores * tflops, CORES_SOURCE), gb)
    return None


def _key(name: str) -> str:
    """What counts of a name: no case, no maker or product, no spaces and dashes."""
    return re.sub(r"[^a-z0-9]", "", _PRODUCTS.sub(" ", name.lower()))


def nearest_kinds(text: str, names: Iterable[str]) -> tuple[str, ...]:
    """The names that look most like `text`: by letters, and those that share its number."""
    bare = _PRODUCTS.sub(" ", _GB.sub(" ", text[:200]).lower()).strip()
    known = tuple(dict.fromkeys(names))
    numbers = set(re.findall(r"[0-9]{3,5}", bare))
    same = [name for name in known if numbers & set(re.findall(r"[0-9]{3,5}", name))]
    return tuple(dict.fromkeys((*near_names(bare, known, 4), *same)))[:4]


def no_such_kind(path: str, text: str, names: Iterable[str]) -> Sentence:
    """The sentence for a kind that is not in the table, with the nearest."""
    known = tuple(names)
    near = nearest_kinds(text, known) or known[:4]
    return template(
        "{path}: there is no kind {text}; the nearest: {near}. All of them: python3 launch.py cluster-file --kinds; or "
        "leave kind out and give memory, bandwidth and tflops",
        path=path,
        text=shown(text),
        near=near,
    )
