"""The bundled model on a ring of two stages, behind a really started app. Knows no test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import RealApp, run_up


@pytest.fixture(scope="package")
def demo_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealApp]:
    """One app for all tests of clients; the model is a real one, small, in fp32."""
    with run_up(tmp_path_factory.mktemp("demo"), "--layers", "0:4,4:8") as app:
        yield app
