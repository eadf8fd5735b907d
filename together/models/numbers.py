"""Numbers as files hold them: fp32, bf16, fp16 and fp8 read into numpy, and written with correct rounding."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from together.models.codes import Codes, Floats

Halves = npt.NDArray[np.float16]
Bytes = npt.NDArray[np.uint8]
NARROW = ("F16", "BF16")  # dtypes of two bytes


def numbers(data: bytes | bytearray | memoryview, dtype: str) -> Floats | Halves:
    """bf16 is widened to fp32, which changes nothing; fp16 stays, for MLX computes some scales in it."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, "<f4" if dtype == "F32" else "<f2")


def from_e4m3(codes: Codes) -> Floats:
    """8-bit floats of 4 bits of exponent in fp32: none is infinite, and of each sign the largest code is no number."""
    found: Floats = _E4M3[codes]
    return found


def _e4m3() -> Floats:
    codes = np.arange(256)
    exponents, fractions = codes >> 3 & 15, codes & 7
    sizes = np.where(exponents == 0, fractions * 2.0**-9, (8 + fractions) * 2.0 ** (exponents - 10))
    sizes[codes & 127 == 127] = np.nan
    return np.where(codes > 127, -sizes, sizes).astype(np.float32)


_E4M3 = _e4m3()


def narrowed(values: Floats, dtype: str) -> Bytes:
    """Finite numbers in `dtype`, rounded to nearest, ties to even."""
    if dtype == "F32":
        return as_bytes(values.astype("<f4"))
    if dtype == "F16":
        return as_bytes(values.astype("<f2"))
    bits = np.ascontiguousarray(values).view(np.uint32)
    return as_bytes((bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype("<u2"))


def fits(values: Floats, dtype: str) -> bool:
    """Whether `dtype` holds every number exactly."""
    if dtype == "BF16":
        return not (np.ascontiguousarray(values).view(np.uint32) & 0xFFFF).any()
    with np.errstate(over="ignore"):
        return dtype == "F32" or bool((values.astype("<f2").astype(np.float32) == values).all())


def overflows(values: Floats, dtype: str) -> bool:
    """Whether one is no number in `dtype`, or none at all."""
    most = np.float32(65504) if dtype == "F16" else np.finfo(np.float32).max
    return not bool((np.abs(values) <= most).all())


def as_bytes(array: npt.NDArray[np.generic]) -> Bytes:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
