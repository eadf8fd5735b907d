"""The layout of the page with the Split panel, and its place on the head's app.

Header, offer, node table and advice are empty elements that `page.js` fills from `/events`, which also shows and hides
the buttons below them. `bar.js` draws the links to the other views, which are no part of it (`webui/chat`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fastapi import FastAPI
from starlette.routing import Mount

from together.head.head import Head
from webui import get_upload_folder, gr
from webui.events import Events
from webui.notices import notice, tried
from webui.split import split_panel
from webui.surface import Surface

HERE = Path(__file__).parent
SYSTEM_FONTS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")
MONO_FONTS = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")
STYLES = ("chat/shared.css", "bar.css")  # before the framework draws anything
SCRIPTS = ("chat/theme.js", "chat/places.js", "bar.js", "page.js", "split.js")  # each uses those before it


def mount(app: FastAPI, head: Head) -> FastAPI:
    """The app with the page at `surface.PLACE`. Call after every other route is there."""
    events = Events()
    page = build(head, events)
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        page,
        path="/",
        allowed_paths=[],
        blocked_paths=[os.getcwd(), tempfile.gettempdir(), get_upload_folder()],  # all it would serve from by itself
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        show_error=False,
        theme=_theme(),
        css=(HERE / "page.css").read_text("utf-8"),
        head="".join(_head()),
    )
    page.has_launched = True  # a page that is mounted checks no path before that
    framework = mounted.routes[-1]
    assert isinstance(framework, Mount)
    framework.app = Surface(framework.app, page, events.accepted(page))
    return mounted


def _head() -> Iterator[str]:
    for names, tag in ((STYLES, "style"), (SCRIPTS, "script")):
        yield from (f"<{tag}>{(HERE / name).read_text('utf-8')}</{tag}>" for name in names)


def build(head: Head, events: Events) -> gr.Blocks:
    """All controls and what they are connected to."""
    page: gr.Blocks = gr.Blocks(title="Split – together", analytics_enabled=False, fill_width=True)
    with page:
        gr.HTML(_slot("header"), elem_id="cluster-header", apply_default_css=False)
        load_again = gr.Button("Load again", variant="primary", size="sm", elem_id="load-again")
        with gr.Row(elem_id="offer", equal_height=True):
            gr.HTML(_slot("offer"), elem_id="offer-text", apply_default_css=False)
            load_last = gr.Button("Load it", variant="primary", size="sm", elem_id="load-last", min_width=90, scale=0)
        said = gr.HTML("", elem_id="notice", apply_default_css=False)
        with gr.Row(elem_id="cluster", equal_height=False):
            with gr.Column(scale=5, min_width=420, elem_id="nodes-column"):
                gr.HTML(_slot("nodes"), elem_id="cluster-nodes", apply_default_css=False)
                with gr.Column(elem_id="advice"):
                    gr.HTML(_slot("advice"), elem_id="advice-text", apply_default_css=False)
                    rebalance = gr.Button("Move the layers", variant="primary", size="sm", elem_id="rebalance")
                switch = _switch()
            with gr.Column(scale=5, min_width=420, elem_id="split-column"):
                split_panel(page, head, events)

        async def move() -> None:
            advised = [shown.serving.model for shown in head.services.shown() if shown.advice]
            for name in advised or [*head.services.by_name][:1] or [""]:
                await head.rebalance(name)

        def on_demand(wanted: bool) -> str:
            head.demands.on = wanted
            return ""

        def demanded() -> bool:
            return head.demands.on

        events.anyone(page.load, demanded, None, switch)
        events.order(switch.input, on_demand, switch, said, refused=notice)
        for button, order in ((load_again, head.load_again), (load_last, head.load_last), (rebalance, move)):
            events.order(button.click, tried(head, order), None, said, refused=notice)
    page.queue(default_concurrency_limit=None, max_size=None, api_open=False)
    return page


def _slot(name: str) -> str:
    return f'<div data-together="{name}"></div>'


def _switch() -> gr.Checkbox:
    label, info = "Load a model when a request names it", "One that was not used for long makes room for it."
    return gr.Checkbox(False, label=label, info=info, elem_id="on-demand")


def _theme() -> gr.themes.Base:
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=SYSTEM_FONTS,
        font_mono=MONO_FONTS,
    )
