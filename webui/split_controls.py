"""The Split panel's controls and what they are connected to. Does not know what they do (`split`) nor draws the plan.

Plan, editor and progress are one element that `split.js` fills: it gets plain data, and sends edits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from together.head.head import Head
from webui.draft import shown_error
from webui.events import Events
from webui.framework import gr
from webui.inputs import edit
from webui.split import Splits

STRATEGIES = [
    ("Recommended", "recommend"),
    ("Equal layers", "uniform"),
    ("By memory", "memory"),
    ("By speed", "compute"),
    ("Half memory, half speed", "mixed"),
    ("By a ratio", "ratio"),
]
# Custom events exist where their quoted names stand in this code.
ON_LOAD = "together.split(element.querySelector('[data-together=split]'), props, watch, trigger, ['edited', 'apply'])"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a plan is asked for, in the order that `Splits.recommend` takes it."""

    model: gr.Dropdown
    context: gr.Number
    users: gr.Number
    strategy: gr.Dropdown
    ratio: gr.Textbox


def split_panel(page: gr.Blocks, head: Head, events: Events) -> None:
    """Call inside the column it belongs to."""
    splits = Splits(head)
    gr.HTML("<h2>Split</h2>", elem_id="split-heading", apply_default_css=False)
    wishes = _wishes()
    recommend = gr.Button("Recommend", variant="primary", size="sm", elem_id="split-recommend")
    slot = '<div data-together="split"></div>'  # never changes, so Gradio leaves alone what split.js puts into it
    panel: Any = gr.HTML(html_template=slot, js_on_load=ON_LOAD, elem_id="split-panel", apply_default_css=False)
    draft = gr.State(None)
    asked = [wishes.model, wishes.context, wishes.users, wishes.strategy, wishes.ratio]
    applied = [draft, wishes.model, panel]
    events.order(page.load, splits.models, None, wishes.model, refused=lambda _: gr.skip())
    events.chat(wishes.strategy.change, _show_ratio, wishes.strategy, wishes.ratio)
    events.order(recommend.click, splits.recommend, asked, [draft, panel], refused=lambda why: (None, shown_error(why)))
    events.order(panel.edited, splits.edited, draft, panel, shown_error, edit, trigger_mode="always_last")
    events.order(panel.apply, splits.apply, draft, applied, lambda why: (None, gr.skip(), shown_error(why)), edit)


def _wishes() -> Wishes:
    label = "Model: choose, or write a folder or a hub id (org/name)"
    choices = [("the one in service", "")]
    model = gr.Dropdown(choices, value="", allow_custom_value=True, label=label, elem_id="split-model")
    with gr.Row(elem_id="split-sizing"):
        strategy = gr.Dropdown(STRATEGIES, value="recommend", label="Strategy", elem_id="split-strategy", min_width=200)
        context = gr.Number(0, label="Context (0: as usual)", precision=0, elem_id="split-context", min_width=110)
        users = gr.Number(0, label="People (0: as usual)", precision=0, elem_id="split-users", min_width=110)
    label = "Ratio, a part for each machine"
    ratio = gr.Textbox(label=label, placeholder="3:1", max_lines=1, visible=False, elem_id="split-ratio")
    return Wishes(model, context, users, strategy, ratio)


def _show_ratio(strategy: str) -> Any:
    return gr.update(visible=strategy == "ratio")
