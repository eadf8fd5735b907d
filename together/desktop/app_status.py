"""What commands know of the running app: the parts of its `/status` that they read."""

from __future__ import annotations

from dataclasses import dataclass

from together.cluster_types import Endpoint, LetGo, NodeStatus
from together.types import Plan
from together.view import NoteKind, ServingState
from together.wording import titled


@dataclass(frozen=True, slots=True)
class AppServing:
    """The model that the app serves or loads; `sentence` is its state for a person."""

    state: ServingState
    model: str
    plan: Plan | None
    ring: str
    sentence: str
    step: str = ""  # what goes on while it is loaded, mended or changed
    since: float = 0.0
    form: str = ""  # as in Serving

    @property
    def title(self) -> str:
        return titled(self.model, self.form)

    @property
    def up(self) -> bool:
        """Whether it answers, perhaps after a pause in which its ring is mended."""
        return self.state in (ServingState.READY, ServingState.RECOVERING)

    def is_of(self, model: str) -> bool:
        """Whether it serves this very model: a name, or the path of its folder."""
        return self.up and self.plan is not None and model in (self.plan.model.name, self.plan.model.path)


@dataclass(frozen=True, slots=True)
class AppLimit:
    """Why plans use less of a device, in sentences."""

    text: str


@dataclass(frozen=True, slots=True)
class AppNote:
    """What is to be known of a machine, by its node's id, in sentences; `kind` as in `MachineNote`."""

    node: str
    kind: NoteKind
    text: str


@dataclass(frozen=True, slots=True)
class AppPace:
    """What a token takes, and what was expected, in a sentence."""

    text: str


@dataclass(frozen=True, slots=True)
class AppModel:
    """One of the app's models, as `ServedModel`."""

    serving: AppServing
    advice: str = ""
    pace: AppPace | None = None
    keep: bool = False
    sharing: str = ""


@dataclass(frozen=True, slots=True)
class AppStatus:
    """What commands read of `/status`; `reason` is why it serves nothing; `serving` and so on are the first model's."""

    nodes: tuple[NodeStatus, ...]
    serving: AppServing
    advice: str
    offer: str
    limits: tuple[AppLimit, ...]
    reason: str
    head: str = ""  # its id, which the nodes that it started name as their owner
    pace: AppPace | None = None
    notes: tuple[AppNote, ...] = ()
    let_go: tuple[LetGo, ...] = ()  # by the app itself
    services: tuple[AppModel, ...] = ()
    version: str = ""  # of the app's program
    endpoint: Endpoint | None = None  # where its head listens
    locked: tuple[str, ...] = ()  # machines with another join code

    @property
    def models(self) -> tuple[AppModel, ...]:
        """All of them; without any, why there is none."""
        return self.services or (AppModel(self.serving, self.advice, self.pace),)

    def serving_of(self, model: str) -> AppServing | None:
        """That of a model by its name or the path of its folder; None where it is not served."""
        return next((each.serving for each in self.models if each.serving.is_of(model)), None)
