"""The Split panel: its controls, and what they do: recommend, score an edit, apply.

Plan, editor and progress are one element that `split.js` fills: it gets plain data, and sends edits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from together.errors import BadSetting, TogetherError
from together.head.head import Head
from together.models.form import PLAINLY, asked_form, form_title
from together.models.names import is_model_name
from together.models.spec import read_shape
from together.planning.explain import Infeasible
from together.planning.request import PlanRequest, parse_ratio
from together.weights.find import known_models, resolve_model
from together.weights.store import KnownModel
from together.wording import exact_size_text, quoted
from webui import gr
from webui.draft import Draft, Edited, Shown, edit_of, shown_error, shown_missing, shown_plan
from webui.events import Events, edit
from webui.notices import in_header, sentence_of

MOST_DIGITS = 9  # of a context, or of users
Choice = tuple[str, str]  # what a person reads, and what the head is given
Updates = AsyncGenerator[tuple[Any, ...], None]


class Splits:
    """Handlers of the panel's events, bound to one head."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._names: dict[str, str] = {}  # of the models to choose from, by folder

    async def opened(self) -> tuple[Any, ...]:
        """New values of the model choice, and what the empty fields of context and users mean."""
        return await self._choices(), *await self.usual("")

    async def usual(self, model: str | None) -> tuple[Any, Any]:
        """The fields of context and users, which show the number that is taken where they are empty."""
        chosen, settings = (model or "").strip(), self._head.settings
        serves = not chosen or chosen in self._head.services.by_name
        asked = self._head.sized(PlanRequest(), chosen) if serves else PlanRequest()
        usual, users = asked.context or settings.context, asked.users or settings.users
        most = await asyncio.to_thread(self._context_of, chosen)
        context = f"at most {usual}" if most is None else str(min(most, usual))
        return gr.update(placeholder=context), gr.update(placeholder=str(users))

    def _context_of(self, model: str) -> int | None:
        """The longest context of a model; None where that is not known without asking others."""
        services = self._head.services
        served = services.by_name.get(model) if model else services.first
        plan = served.serving.plan if served is not None else None
        try:
            folder = Path(plan.model.path) if plan else resolve_model(model, self._head.settings.home_path)
            return read_shape(folder).context if isinstance(folder, Path) else None
        except (TogetherError, OSError):
            return None  # the sentence about it comes when a plan for it is asked for

    async def _choices(self) -> Any:
        """The models of this machine to choose from, those in service first."""
        serving, served = self._head.view().serving, list(self._head.services.by_name.values())
        known = await asyncio.to_thread(known_models, self._head.settings.home_path)
        here = {Path(each.serving.plan.model.path) for each in served if each.serving.plan}
        able = [model for model in known if not model.fault and (model.units or not model.form)]
        others = [model for model in able if model.folder.resolve() not in here]
        self._names = {str(model.folder): model.name for model in others}
        first = [(_in_service(serving.model), "")]
        if len(served) > 1:
            first = [(_in_service(each.name), each.name) for each in served]
        return gr.update(choices=[*first, *map(_choice, others)], value=first[0][1])

    async def recommend(
        self, model: str | None, context: str, users: str, strategy: str, ratio: str | None, quantize: str | None
    ) -> Updates:
        """New values of the draft, the panel, and the fields of context and users. Measuring may take a while."""
        yield None, {"kind": "busy", "text": "Measuring the machines and their links …"}, gr.skip(), gr.skip()
        try:
            parts = parse_ratio(ratio) if ratio and strategy == "ratio" else ()
            form = asked_form(quantize or None)
            request = PlanRequest(strategy, _number(users, "users"), _number(context, "context"), parts, form=form)
            draft, shown = await self._recommended((model or "").strip(), request)
            yield draft, shown, *(_sized(draft) if draft else (gr.skip(), gr.skip()))
        except Exception as error:
            yield None, shown_error(sentence_of(error)), gr.skip(), gr.skip()

    async def _recommended(self, model: str, request: PlanRequest) -> tuple[Draft | None, Shown]:
        outcome = await self._head.plan(model or None, request)
        if isinstance(outcome, Infeasible):
            return None, shown_missing(outcome)
        draft = Draft(model, self._name(model), request, outcome)
        return draft, shown_plan(Edited(draft, draft.counts))

    def _name(self, model: str) -> str:
        if not model:
            return self._head.view().serving.model
        return self._names.get(model) or (model if is_model_name(model) else PurePath(model).name)

    async def edited(self, draft: Draft | None, event: gr.EventData) -> Any:
        """The panel after a person changed a layer count: pure arithmetic, no node is asked."""
        edited, serial = edit_of(draft, event._data)
        return gr.skip() if edited is None else shown_plan(edited, serial)

    async def apply(self, draft: Draft | None, event: gr.EventData) -> Updates:
        """New values of the draft, the model choice and the panel; what is applied is what the fields say now."""
        edited, _ = edit_of(draft, event._data)
        if edited is None:
            yield None, gr.skip(), shown_error("this plan is not known any more; recommend again")
            return
        plan = shown_plan(edited)
        if plan["wrong"]:
            yield draft, gr.skip(), plan
            return
        yield draft, gr.skip(), plan | {"applying": True}
        yield draft, *await self._applied(edited, plan)  # the draft, too: meanwhile another may have been made

    async def _applied(self, edited: Edited, plan: Shown) -> tuple[Any, Shown]:
        draft = edited.draft
        if not draft.model and self._head.view().serving.model != draft.name:
            return gr.skip(), plan | {"failed": f"{draft.name} is not in service any more; recommend again"}
        try:
            several = len(self._head.services.by_name) > 1
            await self._head.load(draft.model or None, edited.request, beside=several)
        except Exception as error:
            said = in_header(self._head, error)
            why = "it was not loaded, for the reason at the top" if said else sentence_of(error)
            return gr.skip(), plan | {"failed": why}
        return await self._choices(), plan | {"done": f"{draft.name} runs by this split; chats go on with it."}


def _sized(draft: Draft) -> tuple[Any, Any]:
    """What the empty fields have meant: where the usual does not fit, a plan is made for less."""
    problem = draft.problem
    return gr.update(placeholder=str(problem.context)), gr.update(placeholder=str(problem.users))


def _number(text: str, what: str) -> int | None:
    """What a field says; None where it is empty. Raises BadSetting."""
    text = text.strip()
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS and int(text)):
        raise BadSetting(
            "{field}: {text} is no whole number from 1 on; write one, or leave the field empty",
            field=what,
            text=quoted(text, 40),
        )
    return int(text)


def _in_service(name: str) -> str:
    return f"{name} (in service)" if name else "the last one"


def _choice(model: KnownModel) -> Choice:
    parts = (
        f"{model.layers} layers" if model.layers else "",
        form_title(model.form) if model.form else "",
        exact_size_text(model.bytes),
        "" if model.whole else f"{model.held} here",
        f"of {model.program}" if model.program else "",
    )
    return f"{model.name} ({', '.join(filter(None, parts))})", str(model.folder)


STRATEGIES = [
    ("Recommended", "recommend"),
    ("Equal layers", "uniform"),
    ("By memory", "memory"),
    ("By speed", "compute"),
    ("Half memory, half speed", "mixed"),
    ("By a ratio", "ratio"),
]
FORMS = [
    ("Unchanged", ""),
    ("4 bit", "4"),
    ("8 bit", "8"),
    ("mxfp4", "mxfp4"),
    ("As published", PLAINLY),
]
# Custom events exist where their quoted names stand in this code.
ON_LOAD = "together.split(element.querySelector('[data-together=split]'), props, watch, trigger, ['edited', 'apply'])"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a plan is asked for, in the order that `Splits.recommend` takes it."""

    model: gr.Dropdown
    context: gr.Textbox
    users: gr.Textbox
    strategy: gr.Dropdown
    ratio: gr.Textbox
    form: gr.Dropdown


def split_panel(page: gr.Blocks, head: Head, events: Events) -> None:
    """Call inside the column it belongs to."""
    splits = Splits(head)
    gr.HTML("<h2>Split</h2>", elem_id="split-heading", apply_default_css=False)
    wishes = _wishes()
    recommend = gr.Button("Recommend", variant="primary", size="sm", elem_id="split-recommend")
    slot = '<div data-together="split"></div>'  # never changes, so Gradio leaves alone what split.js puts into it
    panel: Any = gr.HTML(html_template=slot, js_on_load=ON_LOAD, elem_id="split-panel", apply_default_css=False)
    draft = gr.State(None)
    asked = [wishes.model, wishes.context, wishes.users, wishes.strategy, wishes.ratio, wishes.form]
    applied = [draft, wishes.model, panel]
    sizing = [wishes.context, wishes.users]
    events.order(page.load, splits.opened, None, [wishes.model, *sizing], refused=lambda _: (gr.skip(),) * 3)
    events.order(wishes.model.change, splits.usual, wishes.model, sizing, refused=lambda _: (gr.skip(),) * 2)
    events.anyone(wishes.strategy.change, _show_ratio, wishes.strategy, wishes.ratio)
    events.order(
        recommend.click,
        splits.recommend,
        asked,
        [draft, panel, *sizing],
        refused=lambda why: (None, shown_error(why), gr.skip(), gr.skip()),
    )
    events.order(panel.edited, splits.edited, draft, panel, shown_error, edit, trigger_mode="always_last")
    events.order(panel.apply, splits.apply, draft, applied, lambda why: (None, gr.skip(), shown_error(why)), edit)


def _wishes() -> Wishes:
    label = "Model: choose, or write a folder, a GGUF file or a hub id (org/name)"
    choices = [("the one in service", "")]
    model = gr.Dropdown(choices, value="", allow_custom_value=True, label=label, elem_id="split-model")
    with gr.Row(elem_id="split-sizing"):
        strategy = gr.Dropdown(STRATEGIES, value="recommend", label="Strategy", elem_id="split-strategy", min_width=200)
        context = gr.Textbox(label="Context in tokens", max_lines=1, elem_id="split-context", min_width=110)
        users = gr.Textbox(label="Users at once", max_lines=1, elem_id="split-users", min_width=110)
        form = gr.Dropdown(FORMS, value="", label="Weights", elem_id="split-form", min_width=200)
    label = "Ratio, a part for each machine"
    ratio = gr.Textbox(label=label, placeholder="3:1", max_lines=1, visible=False, elem_id="split-ratio")
    return Wishes(model, context, users, strategy, ratio, form)


def _show_ratio(strategy: str) -> Any:
    return gr.update(visible=strategy == "ratio")
