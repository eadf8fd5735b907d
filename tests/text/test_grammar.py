"""Grammars on real tokenizers and in the engine: any draw under their masks matches, after the reasoning."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from backends.base import LoadRequest, Shard, open_backend
from tests.backends.test_conformance import BACKENDS
from tests.conftest import ROOT
from tests.support.checksum import EOS, VOCABULARY, make_checksum_model
from tests.support.engines import at_rest, loads, serving
from tests.support.loopback import LoopbackRing
from tests.support.schemas import random_schema
from tests.support.tokenizers import byte_fallback, byte_level
from tests.text.test_generate import QUESTION, chatting, joined
from together.engine.engine import Engine
from together.errors import BadRequest
from together.requests import AnswerChunk, ChatRequest, CompletionRequest, Grammar
from together.text.answers import answer_chat, answer_prompts
from together.text.grammar import MOST_LETTERS, Compiled, GrammarConstraint, Grammars
from together.text.thinking import THINK
from together.text.tokenizer import TextModel
from together.text.tool_grammars import STYLE
from together.types import LayerRange, Sampling

Schema = dict[str, Any]
DEMO = ROOT / "examples" / "demo_model"
STEPS = 2000  # tokens of a walk: letters one by one at worst
NUMBER: Schema = {"type": "integer", "minimum": 10, "maximum": 99}


def closed(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


PERSON = closed(name={"type": "string", "maxLength": 8}, age=NUMBER)
# Sums of ranges of repetitions: the library's machine for it grows with every letter, beyond the library's own limit.
TOO_HARD = closed(a={"type": "string", "pattern": "^((a{1,100}){1,100}){1,100}$"})


def grammar(schema: Schema) -> Grammar:
    return Grammar("json_schema", json.dumps(schema))


def assert_matches(text: str, schema: Schema) -> None:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(text))


# --- masks on tokenizers ----------------------------------------------------------------------------------------------


def eos_of(tokenizer: Tokenizer) -> int:
    eos = tokenizer.token_to_id("<|im_end|>")
    assert eos is not None
    return eos


def grammars_of(tokenizer: Tokenizer, thinks: bool = False) -> Grammars:
    return Grammars(tokenizer, frozenset((eos_of(tokenizer),)), THINK if thinks else None)


def compiled(tokenizer: Tokenizer, wanted: Grammar, thinks: bool = False, vocabulary: int | None = None) -> Compiled:
    return asyncio.run(grammars_of(tokenizer, thinks).compile(wanted, vocabulary))


def bits(mask: bytes) -> list[int]:
    return [int(i) for i in np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))]


def walk(constraint: GrammarConstraint, eos: int, seed: int) -> list[int]:
    """Draw any allowed token until the end of the text."""
    chosen, answer = random.Random(seed), list[int]()
    for _ in range(STEPS):
        token_id = chosen.choice(bits(constraint.allowed(answer)))
        if token_id == eos:
            return answer
        answer.append(token_id)
    raise AssertionError("it did not end")


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_whatever_is_drawn_matches(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    found = []
    for seed in range(15):
        schema = random_schema(seed)
        start = compiled(tokenizer, grammar(schema | {"x-guidance": {"whitespace_flexible": True}})).start
        answers = [walk(start(), eos_of(tokenizer), seed * 10 + choice) for choice in range(2)]
        for answer in answers:
            text = tokenizer.decode(answer)
            assert_matches(text, schema)
            assert "\n" not in text  # no white space but one space here and there
        found += answers
    assert len(set(map(tuple, found))) > 20


def test_the_same_question_again_and_answers_beside_each_other() -> None:
    """A replay asks for known masks again; choices are independent."""
    tokenizer = byte_level()
    start = compiled(tokenizer, grammar(PERSON)).start
    first, second = start(), start()
    answer = tokenizer.encode('{"name":"a b","age":37}', add_special_tokens=False).ids
    for length in range(len(answer)):
        mask = first.allowed(answer[:length])
        assert first.allowed(answer[:length]) == mask
        assert answer[length] in bits(mask)
        assert eos_of(tokenizer) not in bits(mask)
    assert bits(first.allowed(answer)) == [eos_of(tokenizer)]
    assert {tokenizer.decode([i])[0] for i in bits(second.allowed(()))} == {"{"}
    assert bits(start().allowed(answer)) == [eos_of(tokenizer)]  # all at once


def test_masks_fit_the_models_logits() -> None:
    """A tokenizer may have more tokens than the matrix, or fewer."""
    tokenizer = byte_level()
    count = tokenizer.get_vocab_size()
    for vocabulary, size in ((None, count), (count + 50, count), (count - 20, count - 20)):
        mask = compiled(tokenizer, grammar(PERSON), vocabulary=vocabulary).start().allowed(())
        assert len(mask) == -(-size // 8)
    thinks = compiled(tokenizer, grammar(PERSON), thinks=True, vocabulary=count - 20)
    assert len(thinks.start("<think>").allowed(())) == -(-(count - 20) // 8)


REFUSED: list[tuple[Schema, str]] = [
    ({"type": "objekt"}, "Invalid type: objekt"),
    ({"$ref": "#/nowhere"}, "does not exist"),
    ({"$ref": "http://127.0.0.1:9/schema.json"}, "not fetch"),
    ({"not": {"type": "object"}}, "Unimplemented"),
    (closed(a={"type": "string", "pattern": "^(?=a)b$"}), "look-around"),
    (closed(a={"type": "string", "pattern": "("}), "regex parse error"),
    (closed(a={"type": "integer", "minimum": 5, "maximum": 2}), "unsatisfiable"),
    ({"$ref": "#"}, "nothing matches it"),
    (closed(a={"enum": ["x" * MOST_LETTERS]}), f"more than {MOST_LETTERS}"),
]


@pytest.mark.parametrize(("schema", "reason"), REFUSED)
def test_what_the_library_cannot_do_is_refused_with_its_reason(schema: Schema, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason) as caught:
        compiled(byte_level(), grammar(schema))
    assert caught.value.param == "response_format"
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("source", ["start: nowhere", "garbage", "start: <|no_such_token|>"])
def test_a_wrong_lark_grammar_is_refused_under_its_own_field(source: str) -> None:
    with pytest.raises(BadRequest, match="answers cannot be held") as caught:
        compiled(byte_level(), Grammar("lark", source, "tools"))
    assert caught.value.param == "tools"


@pytest.mark.parametrize("source", ["no json", "5", "[]", '{"enum": [Infinity]}', '{"enum": ["\\ud800"]}'])
def test_what_is_no_schema_is_refused(source: str) -> None:
    with pytest.raises(BadRequest):
        compiled(byte_level(), Grammar("json_schema", source))


def test_a_model_without_an_end_is_refused() -> None:
    grammars = Grammars(byte_level(), frozenset((10**6,)), None)
    with pytest.raises(BadRequest, match="no token that ends an answer"):
        asyncio.run(grammars.compile(grammar(PERSON)))


def test_lark_with_schemas_in_it() -> None:
    tokenizer, schema = byte_level(), json.dumps(PERSON | {"x-guidance": STYLE})
    wanted = Grammar("lark", f'start: "<call>" args "</call>"\nargs: %json {schema}')
    answer = tokenizer.decode(walk(compiled(tokenizer, wanted).start(), eos_of(tokenizer), 1))
    assert (answer[:6], answer[-7:]) == ("<call>", "</call>")
    assert_matches(answer[6:-7], PERSON)


def test_a_token_that_was_not_allowed_ends_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_level()
    constraint = compiled(tokenizer, grammar(PERSON)).start()
    constraint.allowed(())
    assert bits(constraint.allowed([tokenizer.encode("x").ids[0]])) == [eos_of(tokenizer)]
    assert constraint.failure
    assert "given up" in caplog.text
    assert bits(constraint.allowed([1, 2, 3])) == [eos_of(tokenizer)]


# --- reasoning --------------------------------------------------------------------------------------------------------

TAGS = ("<think>", "</think>")


def thinking(kind: str) -> Tokenizer:
    """Tags as special tokens, as added tokens, or spelled; and a token that ends reasoning and begins an answer."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in ('>{"', ">\n\n", "hm <")])
    if kind != "spelled":
        tokenizer.add_tokens([AddedToken(tag, special=kind == "special", normalized=False) for tag in TAGS])
    return tokenizer


def ids_of(tokenizer: Tokenizer, *parts: str) -> list[int]:
    return [token for part in parts for token in tokenizer.encode(part, add_special_tokens=False).ids]


def assert_allowed(constraint: GrammarConstraint, answer: Sequence[int], eos: int) -> None:
    """Each token is allowed, and the end only after the last."""
    for length in range(len(answer)):
        allowed = bits(constraint.allowed(answer[:length]))
        assert answer[length] in allowed, length
        assert eos not in allowed
    assert bits(constraint.allowed(answer)) == [eos]
    assert not constraint.failure


@pytest.mark.parametrize("kind", ["special", "plain", "spelled"])
@pytest.mark.parametrize("gap", ["", "\n", "\n\n", "\n\n\n"])
def test_the_grammar_begins_after_the_reasoning(kind: str, gap: str) -> None:
    tokenizer = thinking(kind)
    start = compiled(tokenizer, grammar(PERSON), thinks=True).start
    thoughts = ["what if {", "hm <", "think> é🗼 </thin", "k </", "\n", "</think>"]
    answer = [*gap, '{"name":"<", "age":', "10}"]
    eos = eos_of(tokenizer)
    assert_allowed(start("Q<think>\n"), ids_of(tokenizer, *thoughts, *answer), eos)
    assert_allowed(start("Q<think>\n"), ids_of(tokenizer, "</think>", *answer), eos)
    assert_allowed(start("Q"), ids_of(tokenizer, "<think>", *thoughts, *answer), eos)
    assert_allowed(start("Q"), ids_of(tokenizer, *answer[len(gap) :]), eos)  # it need not think
    assert_allowed(start(), ids_of(tokenizer, *answer[len(gap) :]), eos)


def test_reasoning_is_anything_but_special_tokens_and_does_not_run_into_the_answer() -> None:
    tokenizer = thinking("spelled")
    start = compiled(tokenizer, grammar(PERSON), thinks=True).start
    answer = ids_of(tokenizer, "hm", "</think")
    begun = start("<think>").allowed(answer)
    assert tokenizer.token_to_id('>{"') not in bits(begun)
    assert tokenizer.token_to_id(">\n\n") in bits(begun)
    assert tokenizer.token_to_id('>{"') in bits(start("<think>").allowed(answer[:-1]))
    specials = {tokenizer.token_to_id(word) for word in ("<|im_start|>", "<|im_end|>")}
    assert len(bits(begun)) > 300
    assert not specials & set(bits(begun))


def test_no_reasoning_if_the_prompt_has_closed_it_or_it_is_not_split_off() -> None:
    tokenizer = thinking("plain")
    start = compiled(tokenizer, grammar(PERSON), thinks=True).start
    assert tokenizer.token_to_id("<think>") in bits(start("Q").allowed(()))
    for prompt in ("<think>\n\n</think>\n\n", None):
        assert {tokenizer.decode([i])[0] for i in bits(start(prompt).allowed(()))} == {"{"}


def test_an_answer_that_begins_as_the_tag_does() -> None:
    """`<t` may begin the tag or the grammar's text; the next token decides."""
    tokenizer = thinking("spelled")
    start = compiled(tokenizer, Grammar("lark", 'start: "<tool>" /[a-z]/'), thinks=True).start
    assert_allowed(start("Q"), ids_of(tokenizer, "<", "t", "ool>", "x"), eos_of(tokenizer))
    assert_allowed(start("Q"), ids_of(tokenizer, "<", "t", "hink>", "x", "</think>", "<tool>y"), eos_of(tokenizer))


# --- in the engine ----------------------------------------------------------------------------------------------------


def ask(schema: Schema, seed: int = 1, **more: Any) -> ChatRequest:
    options: dict[str, Any] = {"sampling": Sampling(1.0, seed=seed), "max_tokens": 400} | more
    return ChatRequest(QUESTION, grammar=grammar(schema), **options)


async def answers_of(engine: Engine, model: TextModel, request: ChatRequest) -> list[list[AnswerChunk]]:
    found: list[list[AnswerChunk]] = [[] for _ in range(request.choices)]
    async for piece in answer_chat(engine, model, request):
        found[piece.index].append(piece)
    return found


async def test_choices_match_each_for_itself(toy: Path) -> None:
    async with chatting(toy) as (engine, ring, model):
        answers = await answers_of(engine, model, ask(PERSON, choices=4, top_logprobs=2, ignore_eos=True))
        await at_rest(engine, ring)
    texts = [joined(pieces) for pieces in answers]
    assert len(set(texts)) == 4
    for text, pieces in zip(texts, answers, strict=True):
        assert_matches(text, PERSON)
        assert pieces[-1].finish == "stop"  # with ignore_eos too: after the last brace nothing else is allowed
        tokens = [token for piece in pieces for token in piece.token_ids]
        logprobs = [logprob for piece in pieces for logprob in piece.logprobs]
        assert [each.drawn.token_id for each in logprobs] == tokens
        assert all(len(each.top) == 2 for each in logprobs)


async def test_prompts_as_they_are_may_have_a_grammar(toy: Path) -> None:
    request = CompletionRequest(("a", "b"), Sampling(1.0, seed=2), 400, grammar=grammar(PERSON))
    async with chatting(toy) as (engine, _, model):
        pieces = [piece async for piece in answer_prompts(engine, model, request)]
    for index in range(2):
        assert_matches(joined([piece for piece in pieces if piece.index == index]), PERSON)


async def test_stop_length_and_bias_work_as_without_a_grammar(toy: Path) -> None:
    """A stop string and a token limit cut the text; a bias changes the draw, within the grammar."""
    async with chatting(toy) as (engine, _, model):
        (whole,) = await answers_of(engine, model, ask(PERSON))
        (stopped,) = await answers_of(engine, model, ask(PERSON, stop=("age",)))
        (short,) = await answers_of(engine, model, ask(PERSON, max_tokens=5))
        bias = ((ord("7"), 100.0), (ord("x"), 100.0), (ord("}"), -100.0))
        (biased,) = await answers_of(engine, model, ask(PERSON, sampling=Sampling(1.0, logit_bias=bias)))
    assert joined(stopped) == joined(whole).partition("age")[0]
    assert (stopped[-1].finish, short[-1].finish) == ("stop", "length")
    assert joined(short) == joined(whole)[:5]
    assert_matches(joined(biased), PERSON)
    assert json.loads(joined(biased))["age"] == 77


async def test_a_grammar_that_is_given_up_ends_its_own_answer_only(toy: Path) -> None:
    """It is incomplete, so its finish reason is `length`."""
    likes_a = Sampling(1.0, logit_bias=((ord("a"), 100.0),))
    async with chatting(toy) as (engine, ring, model):
        asked = (ask(TOO_HARD, sampling=likes_a), ask(PERSON, seed=5))
        (hard,), (easy,) = await asyncio.gather(*(answers_of(engine, model, request) for request in asked))
        await at_rest(engine, ring)
    assert hard[-1].finish == "length"
    assert joined(hard).startswith('{"a": "aaa')
    assert len(joined(hard)) < 400
    assert_matches(joined(easy), PERSON)


async def test_a_refused_schema_leaves_the_engine_as_it_was(toy: Path) -> None:
    async with chatting(toy) as (engine, ring, model):
        with pytest.raises(BadRequest, match="Invalid type"):
            await answers_of(engine, model, ask({"type": "objekt"}))
        await at_rest(engine, ring)
        assert engine.stats().requests == 0


async def test_answers_that_are_set_back_are_the_same(toy: Path) -> None:
    """The ring is too small for all (where they meet); the preempted get known masks again."""
    wide = closed(a={"type": "string", "minLength": 120, "maxLength": 130})
    requests = [ask(wide, seed) for seed in range(3)]
    model = TextModel.open(toy)
    preempted, texts = 0, list[list[str]]()
    while not preempted and len(texts) < 6:  # on a busy machine one may end before the next begins
        async with LoopbackRing(loads(toy, (2, 4), 320 if texts else 8192)) as ring:
            engine = Engine(ring, model.eos)
            async with serving(engine):
                answers = await asyncio.gather(*(answers_of(engine, model, request) for request in requests))
                texts.append([joined(pieces) for (pieces,) in answers])
                preempted = engine.stats().preempted
    assert preempted > 0
    assert all(each == texts[0] for each in texts)
    for text in texts[0]:
        assert_matches(text, wide)


async def test_a_toy_that_thinks_and_then_answers(tmp_path: Path) -> None:
    closing = VOCABULARY - 2
    quiet = tuple(i for i in range(VOCABULARY) if not (32 <= i < 127 or i in (EOS, closing)))
    folder = make_checksum_model(tmp_path / "toy", quiet_ids=quiet)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    assert tokenizer.token_to_id("</think>") == closing
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}<think>\n")
    async with chatting(folder) as (engine, _, model):
        bias = Sampling(1.0, seed=3, logit_bias=((closing, 3.0), (EOS, 5.0)))
        (thought,) = await answers_of(engine, model, ask(PERSON, sampling=bias))
        never = Sampling(1.0, seed=3, logit_bias=((closing, -100.0), (EOS, 5.0)))
        (endless,) = await answers_of(engine, model, ask(PERSON, sampling=never, max_tokens=60))
    assert "".join(piece.reasoning for piece in thought)
    assert_matches(joined(thought), PERSON)
    assert thought[-1].finish == "stop"
    assert (joined(endless), endless[-1].finish) == ("", "length")
    assert len("".join(piece.reasoning for piece in endless)) > 50


# --- a real model -----------------------------------------------------------------------------------------------------


def load(backend: str, layers: LayerRange) -> Shard:
    return open_backend(backend).load(LoadRequest(DEMO, layers, "cpu", "fp32", 400_000_000, DEMO.parent))


async def test_the_demo_model_answers_the_same_json_on_every_backend() -> None:
    model, texts = TextModel.open(DEMO), []
    for backend in BACKENDS:
        stages = [partial(load, backend, layers) for layers in (LayerRange(0, 4), LayerRange(4, 8))]
        async with LoopbackRing(stages) as ring:
            engine = Engine(ring, model.eos, vocabulary=4096)
            async with serving(engine):
                asked = [ask(random_schema(seed), seed) for seed in range(6)]
                answers = await asyncio.gather(*(answers_of(engine, model, request) for request in asked))
        texts.append([joined(pieces) for (pieces,) in answers])
        assert {pieces[-1].finish for (pieces,) in answers} == {"stop"}
    for seed, text in enumerate(texts[0]):
        assert_matches(text, random_schema(seed))
    assert all(other == texts[0] for other in texts)
