"""The toy model of the engine's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.checksum import make_checksum_model
from tests.support.engines import LAYERS


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checksum_model(tmp_path_factory.mktemp("toy") / "model", layers=LAYERS)
