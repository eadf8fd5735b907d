"""The toy model and a pair of nodes for the tests that need no nodes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checksum import make_checksum_model
from tests.support.cluster import Node, cluster_settings, running_nodes
from together.settings import Settings


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checksum_model(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return cluster_settings(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def pair(settings: Settings) -> Iterator[list[Node]]:
    """Two nodes of one cluster, with one name, that live through all tests; a test unloads what it loads."""
    with running_nodes(settings, "twin", "twin") as nodes:
        yield nodes
