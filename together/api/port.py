"""What HTTP and the page need of a head, as a protocol. Knows no head: `together.head.Head` has these methods."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from together.requests import ChatRequest, Piece
from together.settings import Settings
from together.types import ClusterView


class HeadPort(Protocol):
    """The head as its edges see it. Every method raises TogetherError and nothing else."""

    @property
    def settings(self) -> Settings: ...

    def view(self) -> ClusterView:
        """Nodes and serving state now."""
        ...

    def changes(self) -> AsyncIterator[ClusterView]:
        """The view at once, on every change (at most about 5 a second), and at least every second."""
        ...

    async def load(self, folder: Path | None = None, boundaries: tuple[int, ...] | None = None) -> None:
        """Load a model folder, or the same model again; `boundaries` are the layers where stages meet."""
        ...

    async def unload(self) -> None: ...

    def chat(self, request: ChatRequest) -> AsyncIterator[Piece]:
        """The answer in pieces; closing it cancels. Raises NotServing, QueueFull, BadRequest, ContextTooLong."""
        ...

    async def start_local_node(self) -> None:
        """One more node on this machine."""
        ...

    async def stop_local_node(self) -> None:
        """Stop the newest node that this app started here. Raises AppError where none runs."""
        ...
