"""The checksum toy for whole-product tests: makes its folder, and computes its answers by a plain loop.

Knows nothing of shards, rings or numpy's wrapping numbers: the loop uses Python's own integers, one token at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from together.sampling import Draw, sample
from together.types import Sampling

SPECIALS = ("<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")  # ids 256 to 260; byte b is id b
EOS = 257
VOCABULARY = 264  # some ids beyond the tokenizer's, as padded matrices have
QUIET = tuple(i for i in range(VOCABULARY) if not (32 <= i < 127 or i == EOS))  # answers are readable, and end at times
TEMPLATE = (
    "<|bos|>{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_checksum_model(
    folder: Path,
    layers: int = 4,
    width: int = 8,
    context: int = 4096,
    seed: int = 0,
    quiet_ids: Sequence[int] = QUIET,
    vocabulary: int = VOCABULARY,
    **config: Any,
) -> Path:
    """Write a whole model folder and return it. `config` are more keys of config.json, such as `step_ms` or `rewind`.

    A larger `vocabulary` leaves ids for more added tokens.

    With the default `quiet_ids` about one greedy token in a hundred is EOS; `(*QUIET, EOS)` practically never ends, and
    `()` says any byte, valid UTF-8 or not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = _config(layers, width, context, seed) | {"quiet_ids": list(quiet_ids), "vocab_size": vocabulary}
    _write(folder / "config.json", known | config)
    _write(folder / "generation_config.json", {"bos_token_id": 256, "eos_token_id": [EOS]})
    _write_weights(folder, layers, width, vocabulary, seed)
    _write_tokenizer(folder, context)
    return folder


def expected_tokens(folder: Path, prompt: Sequence[int], count: int, sampling: Sampling) -> list[int]:
    """The `count` tokens that the model in `folder` answers to `prompt`, EOS or not; no shards, caches or batches."""
    model = _Model.read(folder)
    tokens = list(prompt)
    for position, token in enumerate(tokens[:-1]):
        model.feed(token, position)
    while len(tokens) < len(prompt) + count:
        logits = model.logits(model.feed(tokens[-1], len(tokens) - 1))
        draw = Draw(sampling, len(tokens), tokens, len(prompt))
        tokens.append(sample(np.array([logits], np.float32), [draw])[0].token_id)
    return tokens[len(prompt) :]


def expected_scores(folder: Path, tokens: Sequence[int]) -> list[float]:
    """The log-probability of every token but the first, given those before it."""
    model, scores = _Model.read(folder), []
    for position, (token, following) in enumerate(pairwise(tokens)):
        logits = model.logits(model.feed(token, position))
        scores.append(logits[following] - log(sum(map(exp, logits))))
    return scores


def expected_text(folder: Path, prompt: Sequence[int], count: int, sampling: Sampling) -> str:
    """What a person sees of `expected_tokens`: up to the first EOS, without special tokens."""
    tokens = expected_tokens(folder, prompt, count, sampling)
    end = tokens.index(EOS) if EOS in tokens else len(tokens)
    text: str = Tokenizer.from_file(str(folder / "tokenizer.json")).decode(tokens[:end])
    return text


# --- the folder -------------------------------------------------------------------------------------------------------


def _config(layers: int, width: int, context: int, seed: int) -> dict[str, Any]:
    """One KV head of one element in fp32 is the toy's 8 bytes per token and layer: estimates come out exact."""
    return {
        "architectures": ["ChecksumForCausalLM"],
        "model_type": "checksum",
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": width,
        "num_key_value_heads": 1,
        "head_dim": 1,
        "max_position_embeddings": context,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "seed": seed,  # also tells the fingerprints of two seeds apart
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _write_weights(folder: Path, layers: int, width: int, vocabulary: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {f"model.layers.{i}.weight": (width,) for i in range(layers)}
    shapes |= {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    shapes |= {"lm_head.weight": (vocabulary, width)}
    tensors = {name: random.integers(0, 2**24, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _write_tokenizer(folder: Path, context: int) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in _letters().items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIALS[0],
            "eos_token": SPECIALS[1],
            "model_max_length": context,
            "clean_up_tokenization_spaces": False,
            "chat_template": TEMPLATE,
        },
    )


def _letters() -> dict[int, str]:
    """GPT-2's byte alphabet: printable bytes stand for themselves, the others for letters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


# --- the answer -------------------------------------------------------------------------------------------------------

_GOLDEN, _WORD = 0x9E3779B97F4A7C15, 2**64


def _mix(word: int) -> int:
    word %= _WORD
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % _WORD
    return word ^ (word >> 31)


def _fold(values: Sequence[int]) -> int:
    return sum(value * (2 * w + 1) for w, value in enumerate(values)) * _GOLDEN


@dataclass(slots=True)
class _Model:
    """The whole model with one sequence's sum per layer."""

    embed: list[list[int]]
    keys: list[int]
    heads: list[int]
    quiet: list[int]
    sums: list[int]

    @classmethod
    def read(cls, folder: Path) -> _Model:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = {
            key: value.astype(np.int64).tolist() for key, value in load_file(folder / "model.safetensors").items()
        }
        layers = config["num_hidden_layers"]
        norm = _fold(tensors["model.norm.weight"])
        return cls(
            embed=tensors["model.embed_tokens.weight"],
            keys=[_fold(tensors[f"model.layers.{i}.weight"]) for i in range(layers)],
            heads=[norm + _fold(row) for row in tensors["lm_head.weight"]],
            quiet=config["quiet_ids"],
            sums=[0] * layers,
        )

    def feed(self, token: int, position: int) -> list[int]:
        """The state after the last layer."""
        state = self.embed[token]
        for layer, key in enumerate(self.keys):
            entry = _mix(_fold(state) + key + (position + 1) * _GOLDEN)
            self.sums[layer] += entry * (2 * position + 1)
            noise = [_mix(self.sums[layer] + (w + 1) * _GOLDEN) >> 40 for w in range(len(state))]
            state = [(value + more) % 2**24 for value, more in zip(state, noise, strict=True)]
        return state

    def logits(self, state: list[int]) -> list[float]:
        folded = _fold(state)
        values = [(_mix(folded + head) >> 42) / 2**18 for head in self.heads]
        for token in self.quiet:
            values[token] -= 16
        return values
