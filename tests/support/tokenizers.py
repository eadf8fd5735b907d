"""Small tokenizers in model folders, made on the spot: byte-level BPE, and SentencePiece style with byte fallback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = ["hello world, how are you", "the end of the story", "naïve café 🙂 ok", "a b c d e STOP stop"] * 4
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_WORDS = ("<|im_start|>", "<|im_end|>")


def byte_level() -> Tokenizer:
    """Like GPT-2, Llama 3 and Qwen: 256 byte tokens and a few merges; an emoji is up to four tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=list(CHATML_WORDS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Like Llama 2 and Gemma: "▁" for spaces, and a token per byte for unknown characters."""
    words = ["<unk>", *CHATML_WORDS, *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", *"abcdefghijklmnopqrstuvwxyzSTOP,.\n", "▁hello", "▁world", "▁the"]
    vocab = {word: index for index, word in enumerate(words)}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    vocab |= {a + b: len(vocab) + index for index, (a, b) in enumerate(merges[:2])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in CHATML_WORDS])
    return tokenizer


def write_text_files(
    folder: Path,
    tokenizer: Tokenizer,
    template: str | None = CHATML,
    eos: int | list[int] | None = None,
    **config: Any,
) -> Path:
    """The text side of a model folder: tokenizer.json and its configuration, template, generation_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    known = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(known), encoding="utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    if eos is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}), encoding="utf-8")
    return folder
