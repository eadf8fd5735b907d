"""The sampling controls beside the chat: they show the defaults of the served model, and go back to them."""

from __future__ import annotations

from typing import Any

from together.head.head import Head
from together.models.generation import USUAL
from webui.framework import gr

SHOWN = ("temperature", "top_k", "top_p")  # the controls, in the order of `Knobs`; other defaults hold unseen


def sampling_sliders() -> list[gr.components.Component]:
    """In the order of `SHOWN`. Their ranges hold every value that an author may set."""
    return [
        gr.Slider(0, 2, USUAL.temperature, step=0.01, label="Temperature (0: likeliest only)", elem_id="temperature"),
        gr.Slider(0, 200, USUAL.top_k, step=1, label="Top-k (0: off)", elem_id="top-k"),
        gr.Slider(0, 1, USUAL.top_p, step=0.01, label="Top-p (1: off)", elem_id="top-p"),
    ]


def reset_button() -> gr.Button:
    """The page's script presses it as well, whenever another model is served."""
    return gr.Button("Reset to the model's defaults", size="sm", elem_id="reset-sampling")


class SamplingReset:
    """The handler that sets the controls to the served model's defaults and says whose they are."""

    def __init__(self, head: Head) -> None:
        self._head = head

    def reset(self) -> tuple[Any, ...]:
        defaults = self._head.sampling_defaults()
        return tuple(_control(name, getattr(defaults.sampling, name), name in defaults.by_author) for name in SHOWN)


def _control(name: str, value: float, by_author: bool) -> Any:
    info = f"{'Set by the model author' if by_author else 'Default'}: {value:g}"
    if name == "top_k":  # an author may keep more tokens than the slider usually offers
        return gr.update(value=value, info=info, maximum=max(200, int(value)))
    return gr.update(value=value, info=info)
