"""What a message costs a stage: measured over a real link, on every machine some time."""

from __future__ import annotations

import pytest

from together.ring.message import message_ms
from together.types import DTYPES, Dtype


@pytest.mark.parametrize("dtype", DTYPES)
async def test_a_message_takes_some_time(dtype: Dtype) -> None:
    assert await message_ms(64, dtype) > 0
