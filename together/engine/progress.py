"""Where requests are that have no token yet: in the queue, or how much of their prompts the ring has."""

from __future__ import annotations

from collections.abc import Mapping

from together.engine.scheduler import Scheduler
from together.engine.sequence import Sequence
from together.requests import PromptProgress


def places_in(scheduler: Scheduler) -> dict[Sequence, int]:
    """The place of each that waits, from 1: for others' prompts, which are read oldest first, or for room."""
    running = sorted(scheduler.running.values(), key=lambda sequence: sequence.arrival)
    reading = [each for each in running if each.sent < len(each.request.prompt) and not each.waits_for]
    behind = (each for each in reading[1:] if each.sent == each.began)
    return {sequence: place for place, sequence in enumerate((*behind, *scheduler.waiting), 1)}


def progress_of(sequence: Sequence, places: Mapping[Sequence, int], chunk: int) -> PromptProgress:
    """Nothing is told of a prompt that at most one frame of `chunk` tokens has to read.

    What caches had counts as read; so does what another request computes that this one takes over.
    """
    prompt, source = len(sequence.request.prompt), sequence.source
    if place := places.get(sequence, 0):
        return PromptProgress(place, 0, prompt)
    if prompt - sequence.began <= chunk:
        return PromptProgress()
    shared = min(source.read, sequence.waits_for) if source is not None and sequence.waits_for else 0
    return PromptProgress(0, max(shared, sequence.read), prompt)
