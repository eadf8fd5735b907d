"""The tokenizer of the demo model: byte-level BPE trained on the corpus, its chat template and its files.

It does not know the network; any UTF-8 text survives encoding and decoding unchanged.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import corpus

VOCABULARY = 4096
CONTEXT = 4096
BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
SPECIAL = (PAD, BOS, END, "<|system|>", "<|user|>", "<|assistant|>")

# A number is one token up to three digits and never carries the space before it, so " 12" and "12" are the same.
_WORDS = r", (?=\p{N})|\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Words of a person or a system prompt all carry a leading space: one token per word, wherever it stands.
TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|assistant|>' + message['content'] | trim + '<|end|>' -}}
{%- elif message['role'] in ['system', 'developer'] -%}
{{- '<|system|> ' + message['content'] | trim + '<|end|>' -}}
{%- else -%}
{{- '<|user|> ' + message['content'] | trim + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


def _texts(seed: int, count: int) -> Iterator[str]:
    for conversation in itertools.islice(corpus.conversations(seed), count):
        for message in conversation:
            yield message.content if message.role == "assistant" else " " + message.content


def train_tokenizer(seed: int, conversations: int = 60_000) -> Tokenizer:
    """A tokenizer of `VOCABULARY` tokens, all 256 bytes among them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
    )
    tokenizer.train_from_iterator(_texts(seed, conversations), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE,
        padding_side="left",
    )
    fast.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    values = {key: value for key, value in json.loads(path.read_text()).items() if key != "backend"}
    # The name that every version of transformers knows.
    path.write_text(json.dumps(values | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def encode(tokenizer: Tokenizer, conversations: Sequence[corpus.Conversation]) -> list[tuple[list[int], list[bool]]]:
    """Token ids of each conversation as the template writes it, and which of them the model has to say itself."""
    texts = [m.content.strip() if m.role == "assistant" else " " + m.content.strip() for c in conversations for m in c]
    pieces = iter(tokenizer.encode_batch(texts, add_special_tokens=False))
    tokens = {token: number for number, token in enumerate(SPECIAL)}
    encoded: list[tuple[list[int], list[bool]]] = []
    for conversation in conversations:
        ids, spoken = [tokens[BOS]], [False]
        for message in conversation:
            body = next(pieces).ids
            ids += [tokens[f"<|{message.role}|>"], *body, tokens[END]]
            spoken += [False] + [message.role == "assistant"] * (len(body) + 1)
        encoded.append((ids, spoken))
    return encoded
