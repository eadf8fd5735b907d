"""How the head answers its kept conversations: by the models that it serves, or loads for a request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from together.head.demand import Demands
from together.head.machines import Machines
from together.head.service import Service
from together.head.services import Services
from together.requests import AnswerChunk, ChatRequest
from together.types import Sampling

OnDemand = Callable[[str, Callable[[Service], AsyncGenerator[AnswerChunk, None]]], AsyncGenerator[AnswerChunk, None]]


class HeadAnswers:
    """An `Answerer` of conversations. `on_demand` is the head's."""

    def __init__(self, machines: Machines, services: Services, demands: Demands, on_demand: OnDemand) -> None:
        self._machines = machines
        self._services = services
        self._demands = demands
        self._on_demand = on_demand

    def answer(
        self, model: str, request: Callable[[Sampling], ChatRequest]
    ) -> tuple[str, AsyncGenerator[AnswerChunk, None]]:
        """A model that has gone meanwhile comes back where requests load models. Raises NotServing or BadRequest."""

        def chunks(service: Service) -> AsyncGenerator[AnswerChunk, None]:
            return service.held(service.chat(request(service.opened.defaults.sampling)))

        if model and self._demands.on:
            return model, self._on_demand(model, chunks)
        service = self._services.ready(model)
        return service.name, chunks(service)

    def machines(self, model: str) -> tuple[str, ...]:
        """Of a model that is gone: none."""
        service = self._services.by_name.get(model)
        plan = service.serving.plan if service is not None else None
        status = self._machines.membership.status
        nodes = [stage.node for stage in plan.stages] if plan is not None else []
        return tuple(dict.fromkeys(known.name if (known := status(node)) else node for node in nodes))
