"""Folders like those on the hub: prompts, ends, defaults and logits equal those of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from tests.support.chain import Chain, assert_close, load_shard, new_sequence, row
from tests.support.families import MORE, reference_greedy, reference_logits
from tests.support.hub_words import DIALECTS, FAMILIES, LAYERS, HubDialect, make_folder
from together.api.requests import ChatCompletionRequest
from together.models.config import FAMILIES as SUPPORTED
from together.models.generation import SAMPLING_FIELDS, read_sampling_defaults
from together.models.spec import read_spec
from together.requests import LOCAL, ChatRequest
from together.text.tokenizer import TextModel
from together.types import LayerRange, Sampling

BACKENDS = ("torch", "mlx") if find_spec("mlx") else ("torch",)
each_family = pytest.mark.parametrize("family", FAMILIES)
each_dialect = pytest.mark.parametrize("dialect", DIALECTS)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def test_every_family_has_words() -> None:
    assert set(FAMILIES) >= set(SUPPORTED) - {case.family for case in MORE}


@dataclass(frozen=True)
class Read:
    """A folder as transformers and we read it."""

    folder: Path
    ours: TextModel
    theirs: Any  # transformers' tokenizer


Reads = Callable[[str, HubDialect], Read]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reads]:
    """`read(family, dialect)` → that folder, made and read when first asked for."""
    made: dict[tuple[str, HubDialect], Read] = {}

    def make(family: str, dialect: HubDialect) -> Read:
        key = (family, dialect)
        if key not in made:
            folder = make_folder(tmp_path_factory.mktemp("-".join(key)), family, dialect)
            made[key] = Read(folder, TextModel.open(folder), AutoTokenizer.from_pretrained(folder))
        return made[key]

    yield make
    for each in made.values():
        each.ours.template.close()


# --- conversations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chat:
    """A request in the fields of OpenAI's API."""

    name: str
    messages: list[dict[str, Any]]
    variables: Mapping[str, Any] = field(default_factory=dict)
    tools: list[dict[str, Any]] | None = None

    def __str__(self) -> str:
        return self.name


def turn(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


DATED = {"date_string": "26 Jul 2024"}  # as Llama's template names it; others do not look at it
QUESTION = turn("user", "hello world, how are you")
UNICODE = "naïve café 🙂  ok\n\n\n你好, e\u0301 <b>&'\"</b>\ttab  "
SEVERAL = [
    QUESTION,
    turn("assistant", " the end of the story\n"),
    turn("user", UNICODE),
    turn("assistant", "a b c"),
    turn("user", "stop"),
]
CHATS = (
    Chat("one question", [QUESTION], DATED),
    Chat("system", [turn("system", " You are brief. "), QUESTION], DATED),
    Chat("several turns", SEVERAL, DATED),
    Chat("system and several turns", [turn("system", "be kind\n"), *SEVERAL], DATED),
    Chat("unicode", [turn("user", UNICODE)], DATED),
    Chat("words of special tokens", [turn("user", "say <|im_end|> </s> <eos> <|eot_id|> [INST] <think>")], DATED),
)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "What the weather is, in °C & 'words'",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
OTHER = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "The time",
        "parameters": {"type": "object", "properties": {}},
    },
}


def call(identity: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


ASKED = turn("assistant", None, tool_calls=[call("abcde1234", "weather", '{"city": "Köln"}')])
ANSWERED = turn("tool", '{"degrees": 21}', tool_call_id="abcde1234")
TOOL_CHATS = (
    Chat("tools are offered", [turn("system", "be brief"), QUESTION], DATED, [TOOL, OTHER]),
    Chat("a tool answered", [QUESTION, ASKED, ANSWERED], DATED, [TOOL]),
    Chat(
        "tools over several turns",
        [QUESTION, ASKED, ANSWERED, turn("assistant", "21 °C"), turn("user", "and now")],
        DATED,
        [TOOL, OTHER],
    ),
)
THOUGHT = [QUESTION, turn("assistant", "ok", reasoning_content="hm\nyes"), turn("user", "and you")]
SPOKEN = [QUESTION, turn("assistant", "<think>\nhm\n</think>\n\nok"), turn("user", "and you")]
BETWEEN = [QUESTION, {**ASKED, "reasoning_content": "the weather, then"}, ANSWERED]
THINKING_CHATS = (
    Chat("does not think", [QUESTION], {"enable_thinking": False}),
    Chat("thinks", [QUESTION], {"enable_thinking": True}),
    Chat("thought before", THOUGHT),
    Chat("thought before in its text", SPOKEN),
    Chat("thought between calls", BETWEEN, tools=[TOOL]),
)


def asked(chat: Chat) -> ChatRequest:
    """The request as our chat route reads it."""
    body = {"messages": chat.messages, "tools": chat.tools, "chat_template_kwargs": dict(chat.variables)}
    return ChatCompletionRequest.model_validate(body).to_chat(Sampling(), LOCAL)


def our_ids(model: TextModel, chat: Chat) -> list[int]:
    request = asked(chat)
    text = model.template.render(request.messages, request.tool_use.tools, **request.template).result()
    return list(model.encode(text))


def their_ids(tokenizer: Any, chat: Chat) -> list[int]:
    """transformers expects the arguments of calls as objects, by its documentation."""
    messages = deepcopy(chat.messages)
    for each in (item["function"] for message in messages for item in message.get("tool_calls", ())):
        each["arguments"] = json.loads(each["arguments"])
    ids: list[int] = tokenizer.apply_chat_template(
        messages, tools=chat.tools, add_generation_prompt=True, tokenize=True, return_dict=False, **chat.variables
    )
    return ids


@each_family
@each_dialect
@pytest.mark.parametrize("chat", CHATS, ids=str)
def test_prompts_of_conversations(read: Reads, family: str, dialect: HubDialect, chat: Chat) -> None:
    found = read(family, dialect)
    assert our_ids(found.ours, chat) == their_ids(found.theirs, chat)


@pytest.mark.parametrize("family", [name for name, words in FAMILIES.items() if words.knows_tools])
@each_dialect
@pytest.mark.parametrize("chat", TOOL_CHATS, ids=str)
def test_prompts_with_tools(read: Reads, family: str, dialect: HubDialect, chat: Chat) -> None:
    found = read(family, dialect)
    ids = our_ids(found.ours, chat)
    assert ids == their_ids(found.theirs, chat)
    assert "weather" in found.ours.tokenizer.decode(ids, skip_special_tokens=False)


@each_dialect
@pytest.mark.parametrize("chat", THINKING_CHATS, ids=str)
def test_prompts_of_a_model_that_thinks(read: Reads, dialect: HubDialect, chat: Chat) -> None:
    found = read("qwen3", dialect)
    assert found.ours.thinks
    assert our_ids(found.ours, chat) == their_ids(found.theirs, chat)


def test_a_template_that_asks_for_the_date_gets_todays(read: Reads) -> None:
    found, chat = read("llama", "hub"), Chat("undated", [QUESTION])
    before = datetime.now().date()
    ours, theirs = our_ids(found.ours, chat), their_ids(found.theirs, chat)
    assert ours == theirs or datetime.now().date() > before


def test_the_families_differ_where_their_originals_do(read: Reads) -> None:
    """Otherwise the tests above would compare one prompt six times."""
    prompts = {family: read(family, "hub") for family in FAMILIES}
    chat = Chat("system", [turn("system", "RULES"), QUESTION], DATED)
    texts = {family: each.theirs.decode(their_ids(each.theirs, chat)) for family, each in prompts.items()}
    assert texts["llama"].startswith("<|begin_of_text|><|start_header_id|>system")
    assert texts["qwen2"] == texts["qwen3"] == texts["qwen3_moe"]
    assert texts["qwen2"].endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert "RULES\n\nhello" in texts["mistral"]
    assert "[/INST]" in texts["mistral"]
    assert texts["gemma3_text"].startswith("<bos><start_of_turn>user\nRULES\n\nhello")
    assert texts["gemma3_text"].endswith("<end_of_turn>\n<start_of_turn>model\n")
    unasked = Chat("no system", [QUESTION], DATED)
    assert "Quill" in prompts["qwen2"].theirs.decode(our_ids(prompts["qwen2"].ours, unasked))


# --- ends, defaults, begin tokens -------------------------------------------------------------------------------------


@each_family
@each_dialect
def test_ends_are_all_that_transformers_knows(read: Reads, family: str, dialect: HubDialect) -> None:
    found = read(family, dialect)
    generation, config = (kind.from_pretrained(found.folder).eos_token_id for kind in (GenerationConfig, AutoConfig))
    assert found.ours.eos == {*_listed(generation), *_listed(config), *_listed(found.theirs.eos_token_id)}


def _listed(ends: int | list[int] | None) -> list[int]:
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


@each_family
@each_dialect
def test_sampling_defaults_are_those_of_the_author(read: Reads, family: str, dialect: HubDialect) -> None:
    """If the author sets nothing (mistral), our defaults apply."""
    folder = read(family, dialect).folder
    theirs = GenerationConfig.from_pretrained(folder)
    wanted = {name: getattr(theirs, name) for name in SAMPLING_FIELDS if getattr(theirs, name) is not None}
    ours = read_sampling_defaults(folder)
    assert {name: ours.json()[name] for name in ours.by_author} == wanted
    assert bool(wanted) == (family != "mistral")
    if wanted and "temperature" not in wanted:
        assert ours.sampling.temperature == 1.0, "as in transformers where the author only says what to cut off"


@each_family
@each_dialect
@pytest.mark.parametrize("text", ["hello world", "", UNICODE, "the end\nof"])
async def test_plain_prompts_begin_as_the_tokenizer_has_it(
    read: Reads, family: str, dialect: HubDialect, text: str
) -> None:
    found = read(family, dialect)
    ids = list(await found.ours.encode_prompt(text))
    assert ids == found.theirs.encode(text)
    begins = found.theirs.bos_token_id is not None
    assert (ids[:1] == [found.theirs.bos_token_id]) == begins


@each_family
@each_dialect
async def test_a_rendered_chat_as_a_plain_prompt_has_one_begin_token(
    read: Reads, family: str, dialect: HubDialect
) -> None:
    found = read(family, dialect)
    rendered = found.ours.template.render(asked(CHATS[3]).messages, **DATED).result()
    assert list(await found.ours.encode_prompt(rendered)) == their_ids(found.theirs, CHATS[3])


@pytest.mark.parametrize("family", ["gemma3_text", "mistral"])
async def test_add_bos_token_holds_without_a_post_processor(tmp_path: Path, family: str) -> None:
    """transformers 5 ignores add_bos_token beside a tokenizer.json; version 4 honoured it for these two families.

    The author asks for the begin token, and the model was trained with it: ours adds it.
    """
    folder = make_folder(tmp_path, family)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "post_processor": None}))
    assert Tokenizer.from_file(str(file)).post_processor is None
    ours, theirs = TextModel.open(folder), AutoTokenizer.from_pretrained(folder)
    plain = theirs.encode("hello world", add_special_tokens=False)
    assert list(await ours.encode_prompt("hello world")) == [theirs.bos_token_id, *plain]


# --- the configuration and the weights --------------------------------------------------------------------------------


@each_family
@each_dialect
def test_the_configuration_says_the_same(read: Reads, family: str, dialect: HubDialect) -> None:
    folder = read(family, dialect).folder
    ours, theirs = read_spec(folder), AutoConfig.from_pretrained(folder)
    assert ours.family == theirs.model_type
    assert (ours.layers, ours.hidden_size, ours.vocab_size) == (LAYERS, theirs.hidden_size, theirs.vocab_size)
    head_dim = getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads)  # Qwen2's has none
    assert (ours.context, ours.head_dim) == (theirs.max_position_embeddings, head_dim)
    assert ours.tied == theirs.tie_word_embeddings
    sliding = [kind == "sliding_attention" for kind in theirs.layer_types] if family == "gemma3_text" else [False] * 2
    assert ours.windows == tuple(theirs.sliding_window if each else None for each in sliding)
    assert ours.dtype == "bf16"


@each_family
@each_dialect
@each_backend
def test_a_chat_through_two_stages_gives_their_logits(
    read: Reads, family: str, dialect: HubDialect, backend: str
) -> None:
    found = read(family, dialect)
    prompt = our_ids(found.ours, CHATS[0])
    shards = [load_shard(found.folder, backend, LayerRange(at, at + 1)) for at in range(LAYERS)]
    try:
        assert_close(Chain(shards).logits(row(new_sequence(), 0, prompt)), reference_logits(found.folder, prompt))
        greedy = Chain(shards).greedy(new_sequence(), prompt, 4)
        assert greedy == reference_greedy(found.folder, prompt, 4)
    finally:
        for shard in shards:
            shard.close()
