"""The app around a head: page, API, lock and signals in one event loop."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
import threading
import time
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from together import __version__
from together.api.app import build_app
from together.api.server import bind, serving, url_of
from together.cluster_types import Endpoint, ServingState
from together.desktop.client import AppLock, RunningApp, find_running
from together.desktop.show import print_line
from together.errors import AppError, TogetherError
from together.head.head import Head
from together.planning.request import PlanRequest
from together.processes import ExitGuard, stop_on_signals, stop_with_parent
from together.sentences import NOTHING
from together.settings import Settings
from together.wording import count_text

logger = logging.getLogger(__name__)

STOP_WITHIN = 4.7  # seconds until the process ends whatever still hangs; children end with it
FIRST_APP_WITHIN = 30.0  # seconds another app may take from its lock to its page


@dataclass(frozen=True, slots=True)
class AppOptions:
    """The options of `up` that are no settings. `model` None is the bundled one."""

    model: str | None
    request: PlanRequest
    local_nodes: int
    peers: tuple[Endpoint, ...]
    browser: bool
    with_parent: bool


def run_app(settings: Settings, options: AppOptions) -> None:
    """Run until a signal or the API stops it; where this user's app runs already, open its page and return."""
    lock = AppLock(settings.home_path)
    if first := _wait_for_first(settings.home_path, lock):
        print_line(f"together is already running: {first.url}")
        _open_browser(first.url, options)
        return
    guard = ExitGuard(STOP_WITHIN)
    try:
        asyncio.run(_run(settings, options, lock, guard))
    finally:
        guard.cancel()  # not before: the loop's end waits for threads that may hang
        lock.release()


def _wait_for_first(home: Path, lock: AppLock) -> RunningApp | None:
    """The app that holds the lock, or None once the lock is ours. Raises AppError when it never shows its page."""
    deadline = time.monotonic() + FIRST_APP_WITHIN
    while time.monotonic() < deadline:
        if lock.acquire():
            return None
        if (app := find_running(home)) is not None:
            return app
        time.sleep(0.1)
    raise AppError(
        "another together holds {lock} and does not answer; stop it with: together stop", lock=str(home / "app.lock")
    )


async def _run(settings: Settings, options: AppOptions, lock: AppLock, guard: ExitGuard) -> None:
    stop = asyncio.Event()
    with stop_on_signals(stop, guard):
        if options.with_parent:
            stop_with_parent(stop)
        living = asyncio.create_task(_live(settings, options, lock, stop))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({living, stopping}, return_when=asyncio.FIRST_COMPLETED)
        guard.begin()
        living.cancel()
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        try:
            await living
        except asyncio.CancelledError:
            print_line("stopped")


async def _live(settings: Settings, options: AppOptions, lock: AppLock, stop: asyncio.Event) -> None:
    head = Head(settings, options.peers, options.local_nodes)
    try:
        nodes = count_text(options.local_nodes, "node") if options.local_nodes else "no node"
        print_line(f"together {__version__}: starting {nodes} on this machine")
        await head.start()
        page = await asyncio.to_thread(importlib.import_module, "webui.page")  # seconds, while the nodes start
        app = page.mount(build_app(head, stop.set), head)
        listener = bind(settings.host, settings.port)
        url = url_of(listener)
        async with serving(app, listener):
            lock.announce(url)
            print_line(f"page and API: {url}   (Ctrl-C stops everything)")
            _open_browser(url, options)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_tell(head))
                tasks.create_task(_load(head, options))
    finally:
        await head.stop()


async def _load(head: Head, options: AppOptions) -> None:
    try:
        await (head.load_demo(options.request) if options.model is None else head.load(options.model, options.request))
    except TogetherError:
        logger.debug("the first load failed", exc_info=True)  # the view has the cause: page and terminal show it


async def _tell(head: Head) -> None:
    """One line for every new state of the model; runs until cancelled."""
    said, offered = (ServingState.EMPTY, NOTHING, NOTHING), NOTHING
    async for view in head.changes():
        serving = view.serving
        state = (serving.state, serving.step, serving.cause)
        if state != said:
            print_line(str(serving.sentence))
            said = state
        if view.offer and not offered and serving.state in (ServingState.READY, ServingState.FAILED):
            offered = view.offer  # once: from then on the page and the menu have it
            print_line(f"{offered} Load it with: python3 launch.py load")


def _open_browser(url: str, options: AppOptions) -> None:
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    windowed = sys.platform in ("win32", "darwin") or display
    if options.browser and windowed:  # without a window system a text browser would take this terminal
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
