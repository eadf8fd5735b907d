"""Quantized matrices in numpy against MLX's own, bit for bit."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from together.models.codes import Floats, pack, unpack
from together.models.numbers import from_e4m3
from together.models.packing import AFFINE_BITS, FP_PACKINGS, Mode
from together.weights.quantize import (
    fp_scales,
    quantize_affine,
    quantize_fp,
    to_e4m3,
)

DTYPES = {"fp32": mx.float32, "bf16": mx.bfloat16, "fp16": mx.float16}


def matrix(dtype: str) -> mx.array:
    """64 rows of 512 weights: normal ones of many sizes, and groups that are alike, zero, of one sign or tiny."""
    random = np.random.default_rng(1)
    weights = random.standard_normal((64, 512)) * np.exp(random.normal(0, 2, (64, 1)))
    weights[0, :128], weights[1, :128] = 0.3, 0
    weights[2, :128], weights[3, :128] = np.abs(weights[2, :128]), -np.abs(weights[3, :128])
    weights[4] *= 1e-6
    return mx.array(weights.astype(np.float32)).astype(DTYPES[dtype])


def widened(array: mx.array) -> Floats:
    return np.array(array.astype(mx.float32))


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", AFFINE_BITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_affine_is_mlx_s(dtype: str, bits: int, group: int) -> None:
    weights = matrix(dtype)
    words, scales, biases = mx.quantize(weights, group_size=group, bits=bits, stream=mx.cpu)
    codes, scale, bias = quantize_affine(widened(weights), bits, group)
    assert np.array_equal(np.array(words), pack(codes, bits))
    for ours, theirs in ((scale, scales), (bias, biases)):  # stored in the dtype of the weights
        assert np.array_equal(widened(mx.array(ours).astype(DTYPES[dtype])), widened(theirs))


@pytest.mark.parametrize("mode", FP_PACKINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_floating_point_codes_are_mlx_s(dtype: str, mode: Mode) -> None:
    weights = matrix(dtype)
    words, scales, *_ = mx.quantize(weights, mode=mode, stream=mx.cpu)
    codes, scale = quantize_fp(np.array(weights) if dtype == "fp16" else widened(weights), mode)
    assert np.array_equal(np.array(words), pack(codes, FP_PACKINGS[mode].bits))
    assert np.array_equal(np.array(scales), scale)


@pytest.mark.parametrize("mode", FP_PACKINGS)
def test_scales_mean_what_mlx_reads(mode: Mode) -> None:
    """A matrix of ones, by every scale code that stands for a normal number."""
    group, bits = FP_PACKINGS[mode].group, FP_PACKINGS[mode].bits
    codes = np.arange(1, 127 if mode == "nvfp4" else 255, dtype=np.uint8)
    one = np.full((len(codes), group), 2 if bits == 4 else to_e4m3(np.ones(1, np.float32))[0], np.uint8)
    found = mx.dequantize(
        mx.array(pack(one, bits)), mx.array(codes[:, None]), mode=mode, dtype=mx.float32, stream=mx.cpu
    )
    assert np.array_equal(np.array(found)[:, 0], fp_scales(codes, mode))


@given(st.sampled_from(AFFINE_BITS).flatmap(lambda bits: st.tuples(st.just(bits), arrays(np.uint8, (3, 64)))))
def test_packing_loses_nothing(drawn: tuple[int, np.ndarray]) -> None:
    bits, codes = drawn
    kept = codes & np.uint8(2**bits - 1)
    assert np.array_equal(unpack(pack(kept, bits), bits), kept)


def test_every_fp8_number_is_its_own_code() -> None:
    codes = np.array([code for code in range(256) if code & 127 != 127], np.uint8)  # without the two that are none
    assert np.array_equal(to_e4m3(from_e4m3(codes)), codes)
