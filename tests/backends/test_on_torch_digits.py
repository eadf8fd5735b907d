"""How many digits exact products of quantized matrices keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backends.on_torch.blocks import Blocks
from backends.on_torch.compiled import lanes
from backends.on_torch.packed import Packed
from together.models.codes import pack
from together.models.packing import Packing


@pytest.mark.skipif(lanes() == 0, reason="llvmlite has no build for this system")
@pytest.mark.parametrize(("bits", "zero"), [(8, 128), (8, 12), (4, 8), (4, 1)])
def test_exact_products_are_no_differences_of_large_sums(bits: int, zero: int) -> None:
    """Inputs that are all about the same, and codes near the zero point, show it most."""
    random = np.random.default_rng(bits + zero)
    codes = np.clip(zero + random.integers(-1, 2, (64, 1024)), 0, 2**bits - 1).astype(np.uint8)
    scales = random.uniform(0.5, 1, (64, 16)).astype(np.float32)
    words = torch.from_numpy(pack(codes, bits).view(np.int32))
    biases = -zero * scales
    packed = Packed(Packing("affine", bits, 64), words, torch.from_numpy(scales), torch.from_numpy(biases))
    rows = (100 + random.standard_normal((2, 1024))).astype(np.float32)
    scale, bias = (np.repeat(part.astype(np.float64), 64, axis=1) for part in (scales, biases))
    wanted = rows.astype(np.float64) @ (codes * scale + bias).T
    found = Blocks(packed, exact=True)(torch.from_numpy(rows)).double().numpy()
    assert np.abs(found - wanted).max() < 5e-7 * np.abs(wanted).max()
