"""The app around a head: page, API, lock and signals in one event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import webbrowser
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from together import __version__
from together.api.app import build_app
from together.api.keys import KeyFile, new_key
from together.api.server import url_of
from together.cluster_types import Endpoint
from together.commands import as_typed
from together.desktop.again import AGAIN, begin_anew, until_ordered
from together.desktop.client import AppLock, RunningApp, find_running
from together.desktop.front import PageDoors
from together.desktop.joining import app_lines, tell_of_nodes
from together.desktop.keys import first_key, show_key
from together.desktop.logs import keep_log
from together.desktop.page import LatePage
from together.desktop.ports import moved_line
from together.desktop.show import Screen, print_line
from together.errors import AppError, NotServing, TogetherError
from together.head.head import Head
from together.head.reach import page_address
from together.planning.request import PlanRequest
from together.processes import ExitGuard, end, spawn, stop_on_signals, stop_with_parent
from together.sentences import NOTHING, Sentence, say
from together.settings import Settings
from together.view import Serving, ServingState
from together.wording import count_text, titled

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
    tray: bool
    with_parent: bool
    again: bool = False  # it begins anew, after an update: what served is loaded


def run_app(settings: Settings, options: AppOptions) -> RunningApp | None:
    """Run until a signal or the API stops it; or return the app of this user that runs already, and start nothing."""
    lock = AppLock(settings.home_path)
    if first := _wait_for_first(settings.home_path, lock):
        return first
    keep_log(settings.logs_path, "app")
    guard, anew = ExitGuard(STOP_WITHIN), None
    try:
        anew = asyncio.run(_run(settings, options, lock, guard))
    finally:
        guard.cancel()  # not before: the loop's end waits for threads that may hang
        lock.release()
    if anew is not None:
        begin_anew(anew)
    return None


@dataclass(slots=True)
class _Ending:
    """How the app ends: once `stop` is set; with `anew` it begins again, with these options more."""

    stop: asyncio.Event
    anew: tuple[str, ...] | None = None


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
        "another together holds {lock} and does not answer; stop it with: python3 launch.py stop",
        lock=str(home / "app.lock"),
    )


async def _run(settings: Settings, options: AppOptions, lock: AppLock, guard: ExitGuard) -> tuple[str, ...] | None:
    """The options to begin anew with, None where it just ends."""
    stop = asyncio.Event()
    ending = _Ending(stop)
    with stop_on_signals(stop, guard):
        if options.with_parent:
            stop_with_parent(stop)
        living = asyncio.create_task(_live(settings, options, lock, ending))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({living, stopping}, return_when=asyncio.FIRST_COMPLETED)
        guard.begin()
        living.cancel()
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        try:
            await living
        except asyncio.CancelledError:
            print_line("stopped" if ending.anew is None else "stopped, and begins anew with its new version")
    return ending.anew


async def _live(settings: Settings, options: AppOptions, lock: AppLock, ending: _Ending) -> None:
    screen, doors = Screen(), PageDoors.open(settings)  # first: a node is told where the page is
    plain = settings.open_to_network and settings.plain_http
    head = Head(settings, options.peers, options.local_nodes, 0 if plain else doors.shown, screen.tell)
    page = LatePage(head)
    try:
        nodes = count_text(options.local_nodes, "node") if options.local_nodes else "no node"
        screen.line(f"together {__version__}: starting {nodes} on this machine")
        await head.start()
        own_key = new_key()
        app = build_app(head, ending.stop.set, own_key)
        app.mount("/", page)
        url = url_of(doors.home)
        async with doors.serving(app):
            lock.announce(url, own_key, doors.shown if settings.open_to_network else 0, plain)
            if moved := moved_line("the page", settings.port, doors.port):
                screen.line(moved)
            screen.line(f"page and API: {url}   (Ctrl-C stops everything)")
            at = head.machines.where.endpoint
            for line in app_lines(settings, at, doors.shown):
                screen.line(line)
            if settings.asks_for_keys and (key := await _first_key(settings)):
                screen.line("  the first key, which is shown this once:")
                show_key(key, page_address(settings, at, doors.shown) if settings.open_to_network else "")
            open_browser(f"{url}/?key={own_key}" if plain else url, options.browser)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_tell(head, screen))
                tasks.create_task(tell_of_nodes(head, doors.shown, screen))
                tasks.create_task(_load(head, options))
                if not options.with_parent:
                    tasks.create_task(_follow_updates(head, ending))
                    if options.tray and has_windows():
                        tasks.create_task(_keep_icon(screen))
                if doors.certificates is not None:
                    tasks.create_task(doors.certificates.follow())
    finally:
        screen.idle()
        await page.close()
        await head.stop()
        doors.close()


async def _first_key(settings: Settings) -> str:
    return await asyncio.to_thread(first_key, KeyFile.of(settings), seen=sys.stdout.isatty())


async def _load(head: Head, options: AppOptions) -> None:
    if options.again:
        with suppress(NotServing):
            await head.load_last()
            return
    try:
        await (head.load_demo(options.request) if options.model is None else head.load(options.model, options.request))
    except TogetherError:
        logger.debug("the first load failed", exc_info=True)  # the view has the cause: page and terminal show it


async def _keep_icon(screen: Screen) -> None:
    """The icon in the tray, which ends with the app; where there can be none, say so once and go on."""
    icon = await spawn("together", "tray", "--with-parent")
    assert icon.stdout is not None
    assert icon.stderr is not None
    try:
        said, _ = await asyncio.gather(icon.stderr.read(), icon.stdout.read())  # its input stays open: it ends with us
        if await icon.wait():
            words = said.decode(errors="replace").strip().rpartition("\n")[2]
            screen.line(f"no icon is shown: {words.removeprefix('together: ')}")
    finally:
        await end(icon)


async def _follow_updates(head: Head, ending: _Ending) -> None:
    """Ends the app once `launch.py update` wants that. What serves is what was loaded last, unless that is offered."""
    await until_ordered(head.settings.home_path)
    view = head.view()
    serves = any(shown.serving.state is ServingState.READY for shown in view.services)
    ending.anew = (AGAIN,) if serves and not view.offer else ()
    ending.stop.set()


async def _tell(head: Head, screen: Screen) -> None:
    """What becomes of the models, each step once; runs until cancelled."""
    said: dict[str, Sentence] = {}
    offered = NOTHING
    async for view in head.changes():
        serving, states = view.serving, [shown.serving for shown in view.services]
        for each in states:
            if (state := terminal_state(each)) != said.get(each.model, NOTHING):
                screen.tell(state)
                said[each.model] = state
        said = {each.model: said[each.model] for each in states if each.model in said}
        busy = next((each for each in reversed(states) if terminal_step(each)), serving)
        screen.busy(str(terminal_step(busy)), busy.progress)
        if view.offer and not offered and serving.state in (ServingState.READY, ServingState.FAILED):
            offered = view.offer  # once: from then on the page and the menu have it
            screen.line(as_typed(f"{offered} Load it with: python3 launch.py load"))


def terminal_state(serving: Serving) -> Sentence:
    """What the person who started the app is to know and keep; nothing while it is loaded for the first time."""
    match serving.state:
        case ServingState.EMPTY | ServingState.LOADING:
            return NOTHING
        case ServingState.RECOVERING:
            return say("terminal_lost", model=serving.model, cause=serving.cause)
        case ServingState.READY:
            stages = len(serving.plan.stages) if serving.plan else 0
            return say("terminal_ready", model=titled(serving.model, serving.form), stages=stages)
        case ServingState.WAITING | ServingState.FAILED:
            return serving.sentence


def terminal_step(serving: Serving) -> Sentence:
    """What goes on at the moment, which nobody needs to know later."""
    match serving.state:
        case ServingState.LOADING:
            return say("terminal_loading", model=serving.model, step=serving.step or say("step_loading"))
        case ServingState.RECOVERING:
            return say("terminal_mending", model=serving.model, step=serving.step)
        case _:
            return say("terminal_changing", model=serving.model, step=serving.step) if serving.step else NOTHING


def open_browser(url: str, wanted: bool) -> None:
    """Show the page, if that is `wanted` and there are windows here."""
    if wanted and has_windows():  # without a window system a text browser would take this terminal
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def has_windows() -> bool:
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return sys.platform in ("win32", "darwin") or bool(display)
