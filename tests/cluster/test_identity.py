"""The addresses that a node and a head give to others."""

from __future__ import annotations

from pathlib import Path

import pytest

from together.cluster.node import run_node
from together.errors import BadSetting
from together.head import Head
from together.settings import load_settings

NOWHERE = "no.such.host.invalid"


async def test_a_host_without_an_address_is_named(tmp_path: Path) -> None:
    settings = load_settings({}, home=str(tmp_path), host=NOWHERE, backend="checksum", cluster="test-identity")
    with pytest.raises(BadSetting, match=f"no address for '{NOWHERE}'"):
        await run_node(settings)
    with pytest.raises(BadSetting, match=f"no address for '{NOWHERE}'"):
        await Head(settings).start()
