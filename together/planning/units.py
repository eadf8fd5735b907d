"""Quantities as a person writes them: `24 GB`, `936 GB/s`, `2.5 Gbit/s`, `0.3 ms`. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_QUANTITY = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,3})?) *([A-Za-zµ/]*)")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A kind of quantity: its units by name, each as a multiple of the first; `example` is how one is written."""

    example: str
    scales: Mapping[str, float]

    def read(self, text: str) -> float | None:
        """A number with a unit, or the bare number; None for anything else.

        Case counts only where two units differ in nothing else: `Gb/s` are bits, `GB/s` bytes.
        """
        match = _QUANTITY.fullmatch(text.strip())
        if match is None:
            return None
        scale = self._scale(match[2])
        return None if scale is None else float(match[1]) * scale

    def _scale(self, name: str) -> float | None:
        if not name:
            return 1.0
        alike = [scale for unit, scale in self.scales.items() if unit.lower() == name.lower()]
        return self.scales.get(name, alike[0] if alike else None)


_BYTES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_TIMES = {"ms": 1, "us": 1e-3, "µs": 1e-3, "s": 1e3}
_BITS = {"Mbit": 1e-3, "Gbit": 1, "Mb": 1e-3, "Gb": 1, "MB": 8e-3, "GB": 8}


def _per_second(scales: Mapping[str, float], *more: str) -> dict[str, float]:
    return {f"{name}{end}": scale for end in ("/s", *more) for name, scale in scales.items()}


BYTES = Quantity("120MB", _BYTES)
GIGABYTES = Quantity("24 GB", {name: size / 1e9 for name, size in _BYTES.items()})
GB_PER_S = Quantity("936 GB/s", _per_second({name: size / 1e9 for name, size in _BYTES.items()}))
GBIT_PER_S = Quantity("2.5 Gbit/s", {**_per_second(_BITS), "Mbit": 1e-3, "Gbit": 1, "Mbps": 1e-3, "Gbps": 1})
TFLOPS = Quantity("71 TFLOP/s", {"TFLOP/s": 1, "TFLOPS": 1, "GFLOP/s": 1e-3, "GFLOPS": 1e-3})
MS = Quantity("0.3 ms", _TIMES)
