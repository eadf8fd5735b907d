"""Parts one answer's text into what was thought, what is said and which tools are called. Knows no tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from together.requests import CallDelta
from together.text.detokenizer import StopFilter
from together.text.thinking import ThinkSplitter
from together.text.tools import ToolSplitter


@dataclass(frozen=True, slots=True)
class Parts:
    """What became certain at once."""

    thought: str = ""
    said: str = ""
    calls: tuple[CallDelta, ...] = ()


@dataclass(slots=True)
class Parter:
    """Thoughts come first, then text and calls; calls inside thoughts are thoughts. Without splitters all is said."""

    thoughts: ThinkSplitter | None = None
    stops: StopFilter = field(default_factory=lambda: StopFilter(()))  # ends the answer, never the thoughts
    tools: ToolSplitter | None = None
    one_call: bool = False  # nothing is wanted after the first one

    @property
    def thinking(self) -> bool:
        return self.thoughts is not None and self.thoughts.thinking

    @property
    def stopped(self) -> bool:
        """Whether a stop text ended the answer."""
        return self.stops.matched

    @property
    def withheld(self) -> int:
        """Letters taken that are not given yet, or never will be: they may be a stop text, or follow one."""
        return self.stops.withheld + (self.thoughts.held if self.thoughts is not None else 0)

    @property
    def called(self) -> bool:
        return self.tools is not None and self.tools.begun > 0

    @property
    def done(self) -> bool:
        """Whether the answer may end here."""
        return self.one_call and self.tools is not None and self.tools.finished > 0

    def push(self, text: str) -> Parts:
        thought, said = self.thoughts.push(text) if self.thoughts is not None else ("", text)
        said = self.stops.push(said)
        if self.tools is None:
            return Parts(thought, said)
        return self._parts(thought, *self.tools.push(said))

    def flush(self) -> Parts:
        """What was held back, at the end of the answer."""
        thought, said = self.thoughts.flush() if self.thoughts is not None else ("", "")
        said = self.stops.push(said) + self.stops.flush()
        if self.tools is None:
            return Parts(thought, said)
        before, calls = self.tools.push(said)
        after, more = self.tools.flush()
        return self._parts(thought, before + after, (*calls, *more))

    def _parts(self, thought: str, said: str, calls: tuple[CallDelta, ...]) -> Parts:
        return Parts(thought, said, tuple(call for call in calls if call.index == 0) if self.one_call else calls)
