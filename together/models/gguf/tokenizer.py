"""Makes a tokenizer of the words in a GGUF file: byte-level BPE, or sentencepiece's BPE.

With words of 260,000 tokens it takes seconds and holds the GIL: `together/weights/gguf_words.py` runs it in a process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from together.errors import BrokenModel, UnsupportedModel
from together.models.gguf.patterns import SPLITTINGS, Splitting
from together.models.gguf.vocabulary import BYTE, BYTE_LEVEL, CONTROL, NORMAL, PIECES, UNKNOWN, USER, GgufWords
from together.wording import MOST, cut, quoted

SPACE = "▁"  # sentencepiece's letter for one
# Mistral's third tokenizer has its instructions as special words; its publisher puts a space before the first word of
# a text only, and the templates write the others. All other files go by llama.cpp: one after every special word.
_SPACED_ONCE = "[INST]"


def make_tokenizer(words: GgufWords) -> Tokenizer:
    """Raises UnsupportedModel for a way to split that is not known here, BrokenModel for bad merges."""
    if words.kind == BYTE_LEVEL:
        tokenizer = _byte_level(words)
    else:
        tokenizer = _pieces(words) if words.kind == PIECES else _spaced(words, words.merges)
    _add(tokenizer, words, special=True)
    _add(tokenizer, words, special=False)
    return tokenizer


def checked_tokenizer(words: GgufWords, text: str) -> Tokenizer:
    """A tokenizer.json that the file carries whole. Raises BrokenModel where it is none, or of other words."""
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        said = "tokenizer.huggingface.json of {model} cannot be read ({reason}); get this model again"
        raise BrokenModel(said, model=words.title, reason=cut(str(error), MOST)) from error
    for index in words.ids(NORMAL, CONTROL):
        if tokenizer.id_to_token(index) != words.words[index]:
            said = "tokenizer.huggingface.json of {model} has other words than its list ({word}); get this model again"
            raise BrokenModel(said, model=words.title, word=quoted(words.words[index]))
    return tokenizer


def splitting(words: GgufWords) -> Splitting:
    """How texts are split. Raises UnsupportedModel: to guess it would give wrong tokens without a word."""
    if not words.splits:
        said = (
            "{model} does not say how it splits texts (tokenizer.ggml.pre); load a newer GGUF file of it, or its "
            "folder with safetensors"
        )
        raise UnsupportedModel(said, model=words.title)
    if words.splits not in SPLITTINGS:
        said = "{model} splits texts in a way that is not known here ({splits}); load its folder with safetensors"
        raise UnsupportedModel(said, model=words.title, splits=quoted(words.splits))
    return SPLITTINGS[words.splits]


def _byte_level(words: GgufWords) -> Tokenizer:
    how = splitting(words)
    tokenizer = Tokenizer(_bpe(words, words.merges, ignore_merges=how.whole))
    if how.composed:
        tokenizer.normalizer = normalizers.NFC()
    splits: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in how.patterns]
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, letters])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = _ending(words)
    return tokenizer


def _pieces(words: GgufWords) -> Tokenizer:
    """Sentencepiece. Files without `add_space_prefix` mean to have it."""
    tokenizer = _spaced(words, list(merges_of(words)))
    if words.adds_space is False:
        return tokenizer
    if _SPACED_ONCE in (words.words[index] for index in words.ids(CONTROL)):
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence([*_decoding(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def _spaced(words: GgufWords, merges: list[tuple[str, str]]) -> Tokenizer:
    """BPE of whole texts, with a letter for spaces and a word for each byte."""
    unknown = words.roles.get("unk")
    bytes_ = bool(words.ids(BYTE))
    named = {} if unknown is None else {"unk_token": words.words[unknown]}
    tokenizer = Tokenizer(_bpe(words, merges, fuse_unk=True, byte_fallback=bytes_, **named))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(_decoding())
    tokenizer.post_processor = _ending(words)
    return tokenizer


def _decoding() -> list[Any]:
    return [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]


def _bpe(words: GgufWords, merges: list[tuple[str, str]], **settings: Any) -> models.BPE:
    """The merges are of these words: the library panics, which is no exception, where one is not."""
    return models.BPE(vocab={word: index for index, word in enumerate(words.words)}, merges=merges, **settings)


def merges_of(words: GgufWords) -> Iterator[tuple[str, str]]:
    """What merges in sentencepiece, which looks at scores alone: every two words that together are a third.

    The best score comes first; words with equal scores in the order of their ids.
    """
    ids = {words.words[index]: index for index in words.ids(NORMAL)}
    found = [
        (-words.scores[index], index, -at, word[:at], word[at:])
        for word, index in ids.items()
        for at in range(1, len(word))
        if word[:at] in ids and word[at:] in ids
    ]
    return ((left, right) for *_, left, right in sorted(found))


def adds_begin(words: GgufWords) -> bool:
    """Whether texts get the begin token: as the file says, else as llama.cpp has it for this kind of words."""
    if "bos" not in words.roles:
        return False
    if words.adds_begin is not None:
        return words.adds_begin
    known = SPLITTINGS.get(words.splits)
    return (known is not None and known.begins) if words.kind == BYTE_LEVEL else words.kind == PIECES


def _ending(words: GgufWords) -> Any:
    """What a text gets at its ends."""
    roles = [
        role for role, wanted in (("bos", adds_begin(words)), ("eos", words.adds_end)) if wanted and role in words.roles
    ]
    known = {role: words.words[words.roles[role]] for role in roles}
    one, other = ([known.get("bos"), part, known.get("eos")] for part in ("$A:0", "$B:0"))
    return processors.TemplateProcessing(
        single=[part for part in one if part],
        pair=[part for part in one + other if part],
        special_tokens=[(word, words.roles[role]) for role, word in known.items()],
    )


def _add(tokenizer: Tokenizer, words: GgufWords, special: bool) -> None:
    """Words that are found in a text before it is split; no answer shows those that are special."""
    found = words.ids(CONTROL, UNKNOWN) if special else words.ids(USER)
    tokens = [AddedToken(words.words[index], normalized=False, special=special) for index in found]
    if special:
        tokenizer.add_special_tokens(tokens)
    else:
        tokenizer.add_tokens(tokens)
