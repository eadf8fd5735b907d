"""The bundled model behind a really started app, and two nodes for heads of this process. Knows no test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RealApp, run_up
from tests.support.cluster import Node, cluster_settings, fresh_head, running_nodes
from tests.support.lightest import LIGHTEST
from together.head.head import Head
from together.settings import Settings

Heads = Callable[..., AbstractAsyncContextManager[Head]]


@pytest.fixture(scope="package")
def demo_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealApp]:
    """One app for all tests of clients; the model is a real one, small, in fp32."""
    arguments = ("--layers", "0:4,4:8", "--backend", LIGHTEST, "--dtype", "fp32")
    with run_up(tmp_path_factory.mktemp("demo"), *arguments) as app:
        yield app


@pytest.fixture(scope="package")
def shared_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, list[Node]]]:
    """Nodes that no test ends."""
    settings = cluster_settings(tmp_path_factory.mktemp("nodes"))
    with running_nodes(settings, "one", "two") as nodes:
        yield settings, nodes


@pytest.fixture
def head_with(tmp_path: Path, shared_nodes: tuple[Settings, list[Node]]) -> Heads:
    """`head_with(**settings)`: a head of its own for a test, on both nodes."""
    settings, nodes = shared_nodes

    def make(**own: Any) -> AbstractAsyncContextManager[Head]:
        return fresh_head(tmp_path / "home", replace(settings, **own), nodes)

    return make
