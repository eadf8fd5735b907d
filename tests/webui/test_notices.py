"""What the page says of an error, and what it leaves to its header."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.checksum import make_checksum_model
from tests.support.cluster import by_hand, running_cluster
from together.errors import BadPlan, TogetherError
from webui.notices import in_header, tried


async def test_an_error_is_left_to_the_header_only_where_nothing_serves(tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "toy")
    async with running_cluster(tmp_path, "anna") as (head, _):

        async def too_much() -> None:
            await head.load(toy, by_hand("anna=0:2,berta=2:4"))

        with pytest.raises(TogetherError) as failed:
            await too_much()
        assert in_header(head, failed.value)
        assert not in_header(head, BadPlan("another one"))
        assert await tried(head, too_much)() == ""
        await head.load(toy, by_hand("anna=0:4"))
        assert not in_header(head, failed.value)
        assert "berta" in await tried(head, too_much)()
