"""Every error of ours, as one tree on one screen. The edges translate them to gRPC and HTTP.

TogetherError                what happened, to which node or model, and the next step, in one sentence
├── BadInput                 the caller must change something
│   ├── BadRequest           one field of a request (`param` names it)
│   │   └── ContextTooLong   prompt and context, both numbers
│   ├── BadSetting           an option, an environment variable
│   ├── BadPlan              gap, overlap, unknown node
│   ├── UnsupportedModel     a family, a dtype, a quantization that no backend here runs
│   └── BrokenModel          files missing, truncated, or not the model they claim to be
├── FrameRefused             a frame or stream that does not fit this stage (shape, dtype, step)
│   └── EpochRefused         an epoch that is over, or further ahead than a ring goes
├── NotEnoughMemory          a node cannot grant what a stage needs
│   └── NoRoom               no plan fits; `goers` are the models that would have to go, where that is enough
├── LoadFailed               a stage did not get ready
│   └── StageLost            which one, and whether it can be reached at all
├── RingBroken               a stage, node or link of a serving ring is gone
├── NotServing               no model is loaded, or it is being loaded; `retry_after` seconds
├── QueueFull                too many waiting requests; `retry_after` seconds
├── Unreachable              a machine or port does not answer
│   └── Locked               it answers, and has another join code, or none
├── NotAllowed               a member asks for what its role does not include
└── AppError                 the app itself: already running, not running, wrong Python
"""

from __future__ import annotations

from together.sentences import NOTHING, Sentence, Value, template
from together.types import Fault, StagePlan


class TogetherError(Exception):
    """Base of all; the message is a sentence that a person can act on.

    A message that is a string is a template, as those of `together.sentences`, and `values` fill its fields:
    `BadPlan("layer {layer} is missing", layer=3)`. A message without values stands as it is, braces and all.
    """

    def __init__(self, message: str | Sentence, **values: Value) -> None:
        self.sentence = message if isinstance(message, Sentence) else template(message, **values)
        super().__init__(str(self.sentence))


class BadInput(TogetherError):
    pass


class BadRequest(BadInput):
    def __init__(self, message: str | Sentence, param: str | None = None, **values: Value) -> None:
        super().__init__(message, **values)
        self.param = param


class ContextTooLong(BadRequest):
    def __init__(self, tokens: int, context: int, *, at_least: bool = False) -> None:
        """`at_least`: nobody counted further."""
        super().__init__(
            # Clients look for the words before the comma.
            "this model's maximum context length is {context} tokens, and the prompt has {least}{tokens}; "
            "shorten the prompt or start a new chat",
            param="messages",
            least=template("at least ") if at_least else NOTHING,
            tokens=tokens,
            context=context,
        )
        self.tokens = tokens
        self.context = context


class BadSetting(BadInput):
    pass


class BadPlan(BadInput):
    pass


class UnsupportedModel(BadInput):
    pass


class BrokenModel(BadInput):
    pass


class FrameRefused(TogetherError):
    pass


class EpochRefused(FrameRefused):
    pass


class NotEnoughMemory(TogetherError):
    pass


class NoRoom(NotEnoughMemory):
    def __init__(self, message: str | Sentence, goers: tuple[str, ...] = (), **values: Value) -> None:
        super().__init__(message, **values)
        self.goers = goers


class LoadFailed(TogetherError):
    pass


class StageLost(LoadFailed):
    """`index` counts the stages of the plan that is being loaded or joined; `stage` is what was planned for it.

    `joining`: it was loaded, and did not take its place; `reachable`: it answers, and it is its next one that does not.
    """

    def __init__(
        self,
        message: str | Sentence,
        cause: str | Sentence,
        index: int,
        stage: StagePlan | None = None,
        *,
        joining: bool = False,
        reachable: bool = False,
        fault: Fault = Fault.OTHER,
        **values: Value,
    ) -> None:
        super().__init__(message, **values)
        self.cause = cause
        self.index = index
        self.stage = stage
        self.joining = joining
        self.reachable = reachable
        self.fault = fault


class RingBroken(TogetherError):
    """`stage` counts the stages of the ring, -1 where it is none of them, or not known which."""

    def __init__(
        self,
        message: str | Sentence,
        node: str = "",
        cause: str | Sentence = "",
        stage: int = -1,
        fault: Fault = Fault.OTHER,
        **values: Value,
    ) -> None:
        super().__init__(message, **values)
        self.node = node
        self.cause = cause
        self.stage = stage
        self.fault = fault


class NotServing(TogetherError):
    def __init__(self, message: str | Sentence, retry_after: float = 5.0, **values: Value) -> None:
        super().__init__(message, **values)
        self.retry_after = retry_after


class QueueFull(TogetherError):
    def __init__(self, message: str | Sentence, retry_after: float = 2.0, **values: Value) -> None:
        super().__init__(message, **values)
        self.retry_after = retry_after


class Unreachable(TogetherError):
    pass


class Locked(Unreachable):
    pass


class NotAllowed(TogetherError):
    pass


class AppError(TogetherError):
    pass
