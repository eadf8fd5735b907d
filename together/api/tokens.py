"""`/tokenize` and `/detokenize`, as vLLM has them: texts and conversations as a model's tokens, and back."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from typing_extensions import TypedDict

from together.api.answering import ModelAnswers
from together.api.content import Strict
from together.api.guard import FROM_JSON, BodyRoute
from together.api.requests import ChatCompletionRequest, InputMessage, Schema, TokenIds, Tools
from together.api.responses import ErrorAnswer, wrong
from together.api.visitors import visitor_of
from together.types import Sampling

_OF_CHATS = ("messages", "tools", "chat_template", "chat_template_kwargs", "continue_final_message")
_FAILURES: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorAnswer} for code in (400, 401, 403, 404, 413, "4XX", 500, 503)
}


class TokenizeRequest(Strict):
    """A `prompt`, or `messages` with what else a chat's prompt depends on."""

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None  # those that the tokenizer adds to any text: usually
    messages: Annotated[list[InputMessage], Field(min_length=1)] | None = None
    tools: Tools | None = None
    chat_template: str | None = None
    chat_template_kwargs: Schema | None = None
    continue_final_message: bool | None = None


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: TokenIds


class Tokenized(TypedDict):
    """`max_model_len` is the model's context here."""

    count: int
    max_model_len: int
    tokens: list[int]


class Detokenized(TypedDict):
    prompt: str


def token_routes(answers: ModelAnswers) -> APIRouter:
    routes = APIRouter(route_class=BodyRoute)

    @routes.post("/tokenize", responses=_FAILURES)
    async def tokenize(request: Request, asked: Annotated[TokenizeRequest, FROM_JSON]) -> Tokenized:
        """The tokens of a text, or of a conversation up to where its answer begins."""
        if (asked.prompt is None) == (asked.messages is None):
            raise wrong("prompt", "give either a prompt or messages")
        service = await answers.service(asked.model)
        if asked.prompt is None:
            same = {name: getattr(asked, name) for name in _OF_CHATS}  # it was checked with this body
            chat = ChatCompletionRequest.model_construct(**same)
            ids = await service.chat_ids(chat.to_chat(Sampling(), visitor_of(request.scope).owner))
        elif asked.add_special_tokens is False:
            ids = await service.opened.text.encode_aside(asked.prompt)
        else:
            ids = await service.opened.text.encode_prompt(asked.prompt)
        return {"count": len(ids), "max_model_len": service.engine.context, "tokens": list(ids)}

    @routes.post("/detokenize", responses=_FAILURES)
    async def detokenize(asked: Annotated[DetokenizeRequest, FROM_JSON]) -> Detokenized:
        """The text of tokens, special ones too."""
        service = await answers.service(asked.model)
        size = service.engine.vocabulary
        if size is not None and max(asked.tokens) >= size:
            raise wrong("tokens", "the model knows 0 to {last}", last=size - 1)
        decode = service.opened.text.tokenizer.decode
        return {"prompt": await asyncio.to_thread(decode, list(asked.tokens), skip_special_tokens=False)}

    return routes
