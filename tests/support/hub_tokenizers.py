"""Tokenizers built as each family's published one: the same normalizer, pattern, decoder and post-processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.support.tokenizers import CORPUS

LLAMA_WORDS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_WORDS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
MISTRAL_WORDS = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
)
GEMMA_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]")
GEMMA_UNUSED = tuple(f"<unused{i}>" for i in range(99))
GEMMA_TURNS = ("<start_of_turn>", "<end_of_turn>")  # 105 and 106, as published
GEMMA_BREAKS = ("\n", "\n\n")

_LLAMA_WORD = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_WORD = _LLAMA_WORD.replace("{1,3}", "")
_PIECES = (*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.?!:{}[]\"'_é", "▁")
_MERGES = (("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("h", "e"), ("l", "l"), ("he", "ll"), ("▁", "hell"), ("▁hell", "o"))


def llama() -> Tokenizer:
    """Llama 3: the tokenizer puts the begin token before any text."""
    tokenizer = _byte_level(_LLAMA_WORD)
    _add(tokenizer, LLAMA_WORDS, special=True)
    begins = _begins(LLAMA_WORDS[0], id_of(tokenizer, LLAMA_WORDS[0]))
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), begins])
    return tokenizer


def qwen() -> Tokenizer:
    """Qwen 2.5 and 3: no begin token; the words of tools and thoughts are tokens, yet not special."""
    tokenizer = _byte_level(_QWEN_WORD)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    _add(tokenizer, QWEN_SPECIAL, special=True)
    _add(tokenizer, QWEN_WORDS, special=False)
    return tokenizer


def mistral() -> Tokenizer:
    """Mistral v0.3: SentencePiece with a space before the first word alone."""
    tokenizer = _pieces(MISTRAL_WORDS)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([*_decoding(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = _begins("<s>", 1)
    _add(tokenizer, MISTRAL_WORDS, special=True)
    return tokenizer


def gemma() -> Tokenizer:
    """Gemma 3: no space before the first word, and tokens for line breaks."""
    tokenizer = _pieces((*GEMMA_SPECIAL, *GEMMA_UNUSED, *GEMMA_TURNS, *GEMMA_BREAKS))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(_decoding())
    tokenizer.post_processor = _begins("<bos>", 2)
    _add(tokenizer, GEMMA_SPECIAL, special=True)
    _add(tokenizer, GEMMA_UNUSED, special=False)
    _add(tokenizer, GEMMA_TURNS, special=True)
    _add(tokenizer, GEMMA_BREAKS, special=False)
    return tokenizer


def id_of(tokenizer: Tokenizer, word: str) -> int:
    """The id of a word that the tokenizer has."""
    index = tokenizer.token_to_id(word)
    assert index is not None, word
    return index


def added_tokens_decoder(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """What tokenizer_config.json says of the added words."""
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    words = tokenizer.get_added_tokens_decoder()
    return {str(index): {flag: getattr(word, flag) for flag in flags} for index, word in sorted(words.items())}


def _byte_level(pattern: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _pieces(first: Sequence[str]) -> Tokenizer:
    words = [*first, *(f"<0x{byte:02X}>" for byte in range(256)), *_PIECES, *(a + b for a, b in _MERGES)]
    vocab = {word: index for index, word in enumerate(words)}
    merges = list(_MERGES)
    return Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))


def _decoding() -> list[Any]:
    return [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def _begins(word: str, index: int) -> Any:
    return processors.TemplateProcessing(
        single=f"{word}:0 $A:0", pair=f"{word}:0 $A:0 {word}:1 $B:1", special_tokens=[(word, index)]
    )


def _add(tokenizer: Tokenizer, words: Sequence[str], special: bool) -> None:
    tokens = [AddedToken(word, normalized=False, special=special) for word in words]
    if special:
        tokenizer.add_special_tokens(tokens)
    else:
        tokenizer.add_tokens(tokens)
