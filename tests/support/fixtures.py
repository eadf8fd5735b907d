"""Fixtures that several rooms share: their conftest files import them by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.checksum import make_checksum_model
from tests.support.cluster import Node, cluster_settings, running_nodes
from tests.support.hub import HubServer, serve_hub
from together.settings import Settings
from together.weights.store import Store


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for every test: what was hashed is remembered there."""
    folder = tmp_path / "home"
    monkeypatch.setenv("TOGETHER_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def short_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of kernels for quantized matrices: each model has a home of its own, where nothing was tried yet.

    A trial that is cut short may choose any of them, and all compute the same.
    """
    monkeypatch.setattr("backends.on_torch.kernels._SECONDS", 0.0)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub on loopback, and no token of the person's own."""
    with serve_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # whoever imported the library first
        yield server


@pytest.fixture
def store(home: Path) -> Store:
    return Store(home)


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
