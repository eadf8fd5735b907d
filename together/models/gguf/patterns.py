"""How the texts of byte-level BPE are split before merges: by `tokenizer.ggml.pre`, the name that a GGUF file gives.

The patterns are those of the published tokenizer.json files, as llama.cpp quotes them beside its own in
src/llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Splitting:
    """`patterns` are applied one after the other: what one matches, and what lies between, is split by the next."""

    patterns: tuple[str, ...]
    whole: bool = False  # a piece that is a word is taken as it is, without merges
    begins: bool = False  # texts begin with the begin token, where the file says nothing else
    composed: bool = False  # texts are brought to NFC


_TAIL = r"|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+" + _TAIL
_LLAMA3 = _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+" + _TAIL
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SEED = _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+" + _TAIL
_QWEN35 = _SHORT + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASES = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+END|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*END"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+" + _TAIL
_TEKKEN = _CASES.replace("END", "") + r"|\p{N}" + _REST
_GPT4O = _CASES.replace("END", _SHORT + "?") + r"|\p{N}{1,3}" + _REST
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+" + _TAIL
)
_LETTERS = (  # of scripts that have cases; letters that normalization would replace are escaped
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7d"
    "ᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-"
    "ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_DEEPSEEK = (
    r"[\r\n]",
    rf"\s?[{_LETTERS}]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    r"[一-龥ࠀ-一가-퟿]+",
    r"\p{N}+",
)
_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")

_GROUPS: Mapping[str, Splitting] = {
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2": Splitting((_LLAMA3,), whole=True, begins=True),
    "smaug-bpe dbrx chatglm-bpe": Splitting((_LLAMA3,)),
    "glm4 glm5": Splitting((_LLAMA3,), whole=True),
    "qwen2 deepseek-r1-qwen kormo megrez stablelm2": Splitting((_QWEN2,), composed=True),
    "hunyuan solar-open grok-2": Splitting((_QWEN2,)),
    "seed-coder": Splitting((_SEED,)),
    "qwen35": Splitting((_QWEN35,), composed=True),
    "tekken": Splitting((_TEKKEN,), whole=True, begins=True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": Splitting((_GPT4O,)),
    "smollm starcoder refact codeshell exaone minerva-7b mellum2": Splitting((r"\p{N}", _GPT2)),
    "command-r": Splitting((r"\p{N}", _GPT2), composed=True),
    "gpt-2 phi-2 gigachat a.x-4.0 mellum jais trillion exaone4 granite-docling": Splitting((_GPT2,)),
    "olmo mpt": Splitting((_GPT2,), composed=True),
    "deepseek-v3 hunyuan-dense joyai-llm": Splitting((r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3)),
    "deepseek-llm": Splitting(_DEEPSEEK),
    "deepseek-coder": Splitting(_CODER),
    "falcon": Splitting(_FALCON),
    "default": Splitting(_DEFAULT),
}
SPLITTINGS: Mapping[str, Splitting] = {name: how for names, how in _GROUPS.items() for name in names.split()}
