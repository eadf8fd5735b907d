"""The page's layout and its place on the head's app.

Header, offer, node table and advice are empty elements that `page.js` fills from `/events`, which also shows and hides
the buttons below them.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.routing import Mount

from together.head.head import Head
from together.models.generation import ANSWER_LIMIT, USUAL
from together.sentences import EXAMPLES
from webui import get_upload_folder, gr
from webui.answers import Answers, notice, tried
from webui.events import Events, example
from webui.split import split_panel
from webui.surface import Surface

HERE = Path(__file__).parent
WITH_PICTURES = "(question, attached, ...rest) => [question, window.together.take(), ...rest]"
UNLESS_CLEARED = "turns => [window.together.cleared ? [] : turns]"
SAMPLING = ("temperature", "top_k", "top_p")  # the controls, in the order of `Knobs`; other defaults hold unseen
SYSTEM_FONTS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")
SCRIPTS = ("page.js", "split.js", "attach.js")  # in this order: the others use the first
MONO_FONTS = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


def mount(app: FastAPI, head: Head) -> FastAPI:
    """The app with the page at `/`. Call after every other route is there."""
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
        head="".join(f"<script>{(HERE / name).read_text('utf-8')}</script>" for name in SCRIPTS),
    )
    page.has_launched = True  # a page that is mounted checks no path before that
    framework = mounted.routes[-1]
    assert isinstance(framework, Mount)
    framework.app = Surface(framework.app, page, events.accepted(page))
    return mounted


def build(head: Head, events: Events) -> gr.Blocks:
    """All controls and what they are connected to."""
    answers = Answers(head)
    page: gr.Blocks = gr.Blocks(title="together", analytics_enabled=False, fill_width=True)
    with page:
        gr.HTML(_slot("header"), elem_id="cluster-header", apply_default_css=False)
        load_again = gr.Button("Load again", variant="primary", size="sm", elem_id="load-again")
        with gr.Row(elem_id="offer", equal_height=True):
            gr.HTML(_slot("offer"), elem_id="offer-text", apply_default_css=False)
            load_last = gr.Button("Load it", variant="primary", size="sm", elem_id="load-last", min_width=90, scale=0)
        with gr.Row(elem_id="main", equal_height=False):
            with gr.Column(scale=5, min_width=320, elem_id="chat-column"):
                chat = _chat()
            with gr.Column(scale=2, min_width=260, elem_id="settings-column"):
                settings, to_defaults, others, switch = _settings()
        with gr.Row(elem_id="cluster", equal_height=False):
            with gr.Column(scale=5, min_width=420, elem_id="nodes-column"):
                gr.HTML(_slot("nodes"), elem_id="cluster-nodes", apply_default_css=False)
                with gr.Column(elem_id="advice"):
                    gr.HTML(_slot("advice"), elem_id="advice-text", apply_default_css=False)
                    rebalance = gr.Button("Move the layers", variant="primary", size="sm", elem_id="rebalance")
            with gr.Column(scale=5, min_width=420, elem_id="split-column"):
                split_panel(page, head, events)
        _connect(events, answers, chat, settings)
        sliders = settings[1 : 1 + len(SAMPLING)]
        model: Any = settings[-1]

        def reset(name: str) -> tuple[Any, ...]:
            return _defaults(head, name if name in head.services.by_name else "")

        async def models(name: str) -> Any:
            demands, served = head.demands, head.services.by_name
            names = list(dict.fromkeys([*served, *(await demands.names() if demands.on else ())]))
            return gr.update(choices=names, value=name if name in names else next(iter(names), ""))

        async def move() -> None:
            advised = [shown.serving.model for shown in head.services.shown() if shown.advice]
            for name in advised or [*head.services.by_name][:1] or [""]:
                await head.rebalance(name)

        for trigger in (page.load, to_defaults.click):  # page.js clicks for another model, too
            events.chat(trigger, reset, model, sliders)
        for trigger in (page.load, others.click):
            events.chat(trigger, models, model, model)

        def on_demand(wanted: bool) -> str:
            head.demands.on = wanted
            return ""

        def demanded() -> bool:
            return head.demands.on

        events.chat(page.load, demanded, None, switch)
        events.order(switch.input, on_demand, switch, chat.notice, refused=notice)
        for button, order in ((load_again, head.load_again), (load_last, head.load_last), (rebalance, move)):
            events.order(button.click, tried(head, order), None, chat.notice, refused=notice)
    page.queue(default_concurrency_limit=None, max_size=None, api_open=False)
    return page


@dataclass(frozen=True, slots=True)
class ChatControls:
    turns: gr.Chatbot
    notice: gr.HTML
    question: gr.Textbox
    attached: gr.Textbox
    send: gr.Button
    stop: gr.Button
    retry: gr.Button
    clear: gr.Button


def _slot(name: str) -> str:
    return f'<div data-together="{name}"></div>'


def _chat() -> ChatControls:
    turns = gr.Chatbot(
        elem_id="chat",
        show_label=False,
        height="var(--chat-height)",
        buttons=["copy"],
        allow_tags=False,
        placeholder="### Ask something\nYour question passes through all layers, machine by machine.",
        examples=[{"text": question} for question in EXAMPLES],
    )
    notice = gr.HTML("", elem_id="notice", apply_default_css=False)
    with gr.Row(elem_id="ask", equal_height=True):
        question = gr.Textbox(
            elem_id="question",
            show_label=False,
            placeholder="Write a message",
            lines=1,
            max_lines=6,
            scale=6,
            autofocus=True,
            container=False,
        )
        send = gr.Button("Send", variant="primary", elem_id="send", scale=1, min_width=88)
        stop = gr.Button("Stop", variant="stop", elem_id="stop", scale=1, min_width=88, visible=False)
    gr.HTML(_slot("attach"), elem_id="attach", apply_default_css=False)
    attached = gr.Textbox(visible=False, elem_id="attached")  # attach.js has its value, when a question is sent
    with gr.Row(elem_id="chat-actions"):
        retry = gr.Button("Retry", size="sm", elem_id="retry", min_width=80)
        clear = gr.Button("Clear", size="sm", elem_id="clear", min_width=80)
    return ChatControls(turns, notice, question, attached, send, stop, retry, clear)


def _settings() -> tuple[list[gr.components.Component], gr.Button, gr.Button, gr.Checkbox]:
    """The controls in the order of `Knobs`, two buttons, and the switch for models that are loaded on request.

    One button sets the sampling back, and page.js presses it, too; the other one, which only page.js presses, looks
    which models there are.
    """
    with gr.Accordion("Settings", open=True, elem_id="settings"):
        model = gr.Dropdown([""], value="", label="Model", allow_custom_value=True, elem_id="answers-by")
        others = gr.Button("Look for models", elem_id="look-for-models")
        system = gr.Textbox(label="System prompt", lines=2, max_lines=8, elem_id="system", placeholder="You are …")
        sliders = [  # in the order of SAMPLING; their ranges hold every value that an author may set
            _slider("temperature", "Temperature (0: likeliest only)", 2, 0.01),
            _slider("top_k", "Top-k (0: off)", 200, 1),
            _slider("top_p", "Top-p (1: off)", 1, 0.01),
        ]
        reset = gr.Button("Reset to the model's defaults", size="sm", elem_id="reset-sampling")
        limit = gr.Number(ANSWER_LIMIT, label="Max tokens", precision=0, elem_id="max-tokens")
        seed = gr.Textbox(label="Seed", placeholder="random", max_lines=1, elem_id="seed")
        switch = gr.Checkbox(False, label="Load a model when a request names it", elem_id="on-demand")
    return [system, *sliders, limit, seed, model], reset, others, switch


def _slider(name: str, label: str, most: float, step: float) -> gr.components.Component:
    return gr.Slider(0, most, getattr(USUAL, name), step=step, label=label, elem_id=name.replace("_", "-"), buttons=[])


def _defaults(head: Head, name: str) -> tuple[Any, ...]:
    """New values of the sampling controls: the served model's defaults, and whose they are."""
    defaults = head.sampling_defaults(name)
    return tuple(_set_slider(name, getattr(defaults.sampling, name), name in defaults.by_author) for name in SAMPLING)


def _set_slider(name: str, value: float, by_author: bool) -> Any:
    info = f"{'Set by the model author' if by_author else 'Default'}: {value:g}"
    if name == "top_k":  # an author may keep more tokens than the slider usually offers
        return gr.update(value=value, info=info, maximum=max(200, int(value)))
    return gr.update(value=value, info=info)


def _connect(events: Events, answers: Answers, chat: ChatControls, settings: list[gr.components.Component]) -> None:
    outputs = [chat.question, chat.turns, chat.notice, chat.send, chat.stop]
    ask = [chat.question, chat.attached, chat.turns, *settings]
    again = [chat.turns, *settings]
    running = [
        events.owned(chat.question.submit, answers.ask, ask, outputs, js=WITH_PICTURES),
        events.owned(chat.send.click, answers.ask, ask, outputs, js=WITH_PICTURES),
        events.owned(chat.turns.example_select, answers.example, again, outputs, example),
        events.owned(chat.turns.retry, answers.again, again, outputs),
        events.owned(chat.retry.click, answers.again, again, outputs),
    ]
    for stop in (chat.stop.click, chat.clear.click, chat.turns.clear):
        events.cancel(stop, running)
    events.chat(chat.stop.click, answers.stop, chat.turns, [chat.turns, chat.send, chat.stop])
    for event in running:  # a part of the answer may overtake the click; its end by a cancel is a failure to Gradio
        events.chat(event.failure, answers.stop, chat.turns, [chat.turns, chat.send, chat.stop], js=UNLESS_CLEARED)
    for clear in (chat.clear.click, chat.turns.clear):
        events.chat(clear, answers.clear, None, outputs)


def _theme() -> gr.themes.Base:
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=SYSTEM_FONTS,
        font_mono=MONO_FONTS,
    )
