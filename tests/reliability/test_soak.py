"""Row R18: a ring under mixed requests, people who leave and kills; at rest it is as it was before."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from tests.soak import Load, Weight, grown, soak

FORMS = [
    pytest.param(Load(7, 3), id="seven seconds", marks=pytest.mark.full),
    pytest.param(Load(600, 60), id="ten minutes", marks=pytest.mark.full),
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("load", FORMS)
async def test_a_ring_that_was_soaked_is_as_it_was(tmp_path: Path, load: Load) -> None:
    summary = await soak(tmp_path, load)
    print(asdict(summary))
    assert summary.faults == ()
    assert summary.requests.kills >= 2
    assert summary.requests.finished > 3
    assert summary.requests.left > 0


def test_what_grows_is_said() -> None:
    before = Weight((10, 5, 5, 5), (40, 20, 20, 20), (100 * 2**20,) * 4)
    after = Weight((10, 11, 5, 5), (46, 20, 20, 25), (100 * 2**20, 100 * 2**20, 200 * 2**20, 110 * 2**20))
    assert grown(before, after) == [
        "node anna had 5 threads and has 11",
        "the head had 40 files and has 46",
        "node berta had 100 MiB and has 200 MiB",
    ]
    assert grown(before, before) == []
