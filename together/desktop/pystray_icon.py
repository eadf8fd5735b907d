"""The icon by the library pystray, which alone imports it: on Windows, macOS, and Linux with AppIndicator, GTK or X."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from PIL import Image, ImageDraw

from together.desktop.entries import Entry, EntryState
from together.desktop.show import one_line
from together.desktop.tray import NoTray, TrayView

SIZE = 64  # pixels
BY_CLICK = "chat"  # the entry of a click on the icon itself
FIRST = "start"  # that of a click where no app runs
COLOURS = {True: "#2f6fed", False: "#8a8f98"}  # while an app runs, and without one


def picture(runs: bool) -> Image.Image:
    """Three machines in a ring."""
    drawn = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    pen, colour = ImageDraw.Draw(drawn), COLOURS[runs]
    pen.ellipse((12, 12, 52, 52), outline=colour, width=6)
    for x, y in ((32, 12), (15, 44), (49, 44)):
        pen.ellipse((x - 11, y - 11, x + 11, y + 11), fill=colour)
    return drawn


class PystrayIcon:
    """Implements `Icon`."""

    def __init__(self, act: Callable[[Entry], None]) -> None:
        """Raises NoTray where no kind of icon of the library can be."""
        self._library = _library()
        self._act = act
        self._shown = TrayView(False, "together", ())
        menu = self._library.Menu(self._items)
        self._icon = self._library.Icon("together", picture(False), "together", menu)

    def run(self, begun: Callable[[], None]) -> None:
        def set_up(icon: Any) -> None:
            icon.visible = True
            if _is_plain_x(self._library):
                _ask_for_clicks(icon)
            begun()

        self._icon.run(set_up)

    def show(self, shown: TrayView) -> None:
        if shown.runs != self._shown.runs:
            self._icon.icon = picture(shown.runs)
        self._shown = shown
        self._icon.title = shown.line[:63]  # Windows takes no more
        self._icon.update_menu()

    def tell(self, text: str) -> None:
        if self._icon.HAS_NOTIFICATION:
            self._icon.notify(text, "together")

    def close(self) -> None:
        self._icon.stop()

    def _items(self) -> Iterator[Any]:
        """The menu now; the library asks for it whenever it is to be shown."""
        item = self._library.MenuItem
        for entry in self._shown.entries:
            yield item(
                one_line(entry.label),
                partial(self._chosen, entry),
                checked=(lambda chosen: True) if entry.state is EntryState.TICKED else None,
                enabled=entry.state is not EntryState.OFF,
                default=entry.name in (BY_CLICK, FIRST),
            )
        yield self._library.Menu.SEPARATOR
        yield item("Close this icon; the app goes on", self.close)

    def _chosen(self, entry: Entry, *_: object) -> None:
        self._act(entry)


def _library() -> Any:
    try:
        library = importlib.import_module("pystray")
    except Exception as error:  # each system's part of the library connects now, and has errors of its own
        raise NoTray("no tray is here ({error})", error=str(error) or type(error).__name__) from None
    if library.Icon.__module__.endswith("_dummy") or (_is_plain_x(library) and not _x_has_tray()):
        raise NoTray("no tray is here ({error})", error="the desktop shows no icons of programs")
    return library


def _is_plain_x(library: Any) -> bool:
    return bool(library.Icon.__module__.endswith("_xorg"))


def _ask_for_clicks(icon: Any) -> None:
    """The library (0.19) handles them on plain X, and never asks for them."""
    from Xlib import X

    icon._window.change_attributes(event_mask=X.ExposureMask | X.StructureNotifyMask | X.ButtonPressMask)
    icon._display.flush()


def _x_has_tray() -> bool:
    """Whether a program keeps the tray of this screen: the library waits for one without a word.

    https://specifications.freedesktop.org/systemtray-spec/latest/
    """
    from Xlib.display import Display

    display = Display()
    try:
        selection = display.intern_atom(f"_NET_SYSTEM_TRAY_S{display.get_default_screen()}")
        return bool(display.get_selection_owner(selection))
    finally:
        display.close()
