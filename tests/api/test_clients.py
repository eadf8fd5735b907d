"""Real clients, unchanged, against the bundled model on a ring of two stages: openai, LangChain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr
from tokenizers import Tokenizer

from tests.conftest import ROOT, RealApp
from together.requests import Message
from together.text.tokenizer import TextModel

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
ASKED: list[Any] = [{"role": "user", "content": QUESTION}]
MODEL = "demo_model"
FOLDER = ROOT / "examples" / "demo_model"


@pytest.fixture(scope="module")
def client(demo_app: RealApp) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo_app.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat(client: openai.OpenAI, **more: Any) -> Any:
    asked: dict[str, Any] = {"model": MODEL, "messages": ASKED, "temperature": 0, "max_tokens": 30}
    return client.chat.completions.create(**(asked | more))


# --- openai -----------------------------------------------------------------------------------------------------------


def test_the_list_of_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "together"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_a_whole_answer_and_its_usage(client: openai.OpenAI) -> None:
    answer = chat(client)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    text = TextModel.open(FOLDER)
    assert answer.usage.prompt_tokens == len(text.prompt_ids([Message("user", QUESTION)]))
    assert answer.usage.completion_tokens == len(text.encode(ANSWER))


def test_a_stream(client: openai.OpenAI) -> None:
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    texts = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert "".join(texts) == ANSWER
    assert len(texts) > 3
    assert chunks[-1].usage.completion_tokens == len(TextModel.open(FOLDER).encode(ANSWER))
    with client.chat.completions.stream(model=MODEL, messages=ASKED, temperature=0) as events:
        assert events.get_final_completion().choices[0].message.content == ANSWER


async def test_ten_at_once_with_the_async_client(demo_app: RealApp) -> None:
    names = ("France", "Peru", "Japan", "Kenya", "Norway", "Chile", "Spain", "Cuba", "Nepal", "Egypt")
    async with openai.AsyncOpenAI(base_url=f"{demo_app.url}/v1", api_key="none", max_retries=0) as client:

        async def ask(name: str) -> str:
            messages: list[Any] = [{"role": "user", "content": f"What is the capital of {name}?"}]
            parts = await client.chat.completions.create(
                model=MODEL, messages=messages, temperature=0, max_tokens=20, stream=True
            )
            return "".join([part.choices[0].delta.content or "" async for part in parts])

        together = await asyncio.gather(*map(ask, names))
        alone = [await ask(name) for name in names[:3]]
    assert together[:3] == alone
    assert all(name in said for name, said in zip(names[:3], together, strict=False))


def test_logprobs_are_of_the_answers_tokens(client: openai.OpenAI) -> None:
    answer = chat(client, logprobs=True, top_logprobs=4)
    found = answer.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in found).decode() == ANSWER
    assert "".join(token.token for token in found) == ANSWER
    for token in found:
        assert len(token.top_logprobs) == 4
        assert token.logprob == token.top_logprobs[0].logprob <= 0  # greedy: the drawn one is the best
    streamed = chat(client, logprobs=True, stream=True)
    parts = [part.choices[0].logprobs for part in streamed if part.choices[0].logprobs]
    assert [token.token for part in parts for token in part.content] == [token.token for token in found]


def test_several_choices_differ_and_come_again(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Tell me something about cats."}]
    asked: dict[str, Any] = {"messages": messages, "temperature": 2, "n": 3, "max_tokens": 10}
    first, again = (chat(client, seed=5, **asked) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    assert texts == [choice.message.content for choice in again.choices]
    assert texts[0] == chat(client, seed=5, **asked | {"n": 1}).choices[0].message.content
    streamed = [""] * 3
    for part in chat(client, seed=5, stream=True, **asked):
        streamed[part.choices[0].index] += part.choices[0].delta.content or ""
    assert streamed == texts


def test_stop_and_length(client: openai.OpenAI) -> None:
    stopped = chat(client, stop=["is Par"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("The capital of France ", "stop")
    assert chat(client, max_completion_tokens=2, max_tokens=20).choices[0].finish_reason == "length"


def test_older_completions(client: openai.OpenAI) -> None:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    prompts = ["What is the", "The capital of"]
    ids = [tokenizer.encode(prompt).ids for prompt in prompts]
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 6, "temperature": 0, "logprobs": 2}
    by_text = client.completions.create(prompt=prompts, **asked)
    by_ids = client.completions.create(prompt=ids, **asked)
    assert [choice.text for choice in by_text.choices] == [choice.text for choice in by_ids.choices]
    one = client.completions.create(prompt=ids[1], **asked).choices[0]
    assert one.text == by_text.choices[1].text
    logprobs: Any = one.logprobs
    assert "".join(logprobs.tokens) == one.text
    assert [one.text[at:][: len(word)] for at, word in zip(logprobs.text_offset, logprobs.tokens, strict=True)] == list(
        logprobs.tokens
    )
    parts = client.completions.create(prompt=prompts[1], stream=True, n=2, **asked)
    assert "".join(part.choices[0].text for part in parts if part.choices[0].index == 1) == one.text


def test_a_prompt_comes_back_with_its_scores(client: openai.OpenAI) -> None:
    """As evaluation programs ask for it. A token's score is its log-probability as an answer has it."""
    text = "The capital of France is Paris."
    asked: dict[str, Any] = {"model": MODEL, "prompt": [text, text + " 🎈"], "echo": True, "max_tokens": 0}
    reply = client.completions.create(**asked, logprobs=0)
    plain, second = reply.choices
    scores: Any = plain.logprobs
    assert (plain.text, plain.finish_reason, second.text) == (text, "length", text + " 🎈")
    assert "".join(scores.tokens) == text
    assert [text[at:][: len(word)] for at, word in zip(scores.text_offset, scores.tokens, strict=True)] == scores.tokens
    assert scores.token_logprobs[0] is None
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (len(scores.tokens) + _count(second), 0)
    drawn = client.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=1, temperature=0, logprobs=0
    )
    last: Any = drawn.choices[0].logprobs
    place = scores.tokens.index(last.tokens[0])
    assert scores.token_logprobs[place] == pytest.approx(last.token_logprobs[0], abs=1e-4)
    parts = list(client.completions.create(**asked, logprobs=0, n=2, stream=True))
    assert "".join(part.choices[0].text for part in parts if part.choices[0].index == 1) == text
    for wrong in ({"logprobs": 1}, {"logprobs": 0, "max_tokens": 1}, {}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**(asked | wrong))
        assert caught.value.param == "echo"
    for prompt in ("", [10**6]):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**(asked | {"logprobs": 0, "prompt": prompt}))
        assert caught.value.param == "prompt"


def _count(choice: Any) -> int:
    return len(choice.logprobs.tokens)


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        chat(client, model="gpt-4")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, messages=[{"role": "user", "content": "x " * 9000}])
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model=MODEL, input="x")
    assert missing.value.code == "not_implemented"
    assert str(missing.value.request_id).startswith("req_")


# --- others -----------------------------------------------------------------------------------------------------------


async def test_langchain(demo_app: RealApp) -> None:
    model = ChatOpenAI(model=MODEL, base_url=f"{demo_app.url}/v1", api_key=SecretStr("none"), temperature=0)
    reply = model.invoke([SystemMessage("Answer briefly."), HumanMessage(QUESTION)])
    assert "Paris" in reply.text
    assert reply.usage_metadata is not None
    assert reply.usage_metadata["output_tokens"] > 3
    assert "".join(part.text for part in model.stream(QUESTION)) == ANSWER
    assert (await model.ainvoke(QUESTION)).text == ANSWER
    assert len((await model.agenerate([[HumanMessage(QUESTION)]] * 2)).generations) == 2
