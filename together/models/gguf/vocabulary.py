"""What a GGUF file says of its words, checked: texts, kinds, scores, merges and the ids of the special ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from together.errors import BrokenModel, UnsupportedModel
from together.models.gguf.header import Value
from together.sentences import template
from together.wording import quoted

T = TypeVar("T")

MOST_ADDED = 200_000  # letters of special and added words: more take minutes; Gemma's 6,400 have 100,000
MOST_PIECE = 1024  # letters of a word of sentencepiece, whose every cut is tried; usual are 16 to 32
MOST_LETTERS = 16 * 2**20  # of all words; the most that is published: 2 million
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # ggml's kinds of words
BYTE_LEVEL, PIECES, SPACED = "gpt2", "llama", "gemma4"  # `tokenizer.ggml.model`
_ROLES = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
    "sep": "seperator_token_id",
    "mask": "mask_token_id",
}
_DEFAULT = "default"
_SPLITS = {"gptoss": "gpt-4o"}  # of an architecture whose files do not say how they split texts, and mean this
_USUAL_IDS = {"bos": 1, "eos": 2, "unk": 0}  # of sentencepiece, where a file names none

# Words that end an answer wherever a model has them as a special word: files often name one end of several. From
# llama.cpp, src/llama-vocab.cpp, without those for filling in code.
_ENDS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> [e~[ "
    "<｜end▁of▁sentence｜>".split()
)
# A word that ends nothing where the model has all of these.
_NO_ENDS = {"<|end|>": ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"}), "</s>": ({"<|tool_response>"},)}


@dataclass(frozen=True, slots=True)
class GgufWords:
    """`words` are without the unused ones at the end, which fill the matrices up."""

    title: str  # what errors call the model
    kind: str  # of tokenizer
    splits: str  # the name of how texts are split, of byte-level BPE
    words: list[str]
    kinds: list[int]
    scores: list[float]  # empty for byte-level BPE
    merges: list[tuple[str, str]]  # empty for sentencepiece
    roles: Mapping[str, int]  # ids, as of "bos"
    adds_begin: bool | None
    adds_end: bool | None
    adds_space: bool | None

    @classmethod
    def of(cls, metadata: Mapping[str, Value], title: str) -> GgufWords:
        """Raises UnsupportedModel for a file without words, BrokenModel for one that contradicts itself."""
        facts = _Facts(metadata, title)
        kind, splits = facts.text("model"), facts.text("pre")
        if splits in ("", _DEFAULT):
            splits = _SPLITS.get(str(metadata.get("general.architecture")), splits)
        if not kind or not facts.has("tokens"):
            said = "{model} holds no words (tokenizer.ggml.tokens); load its folder with safetensors instead"
            raise UnsupportedModel(said, model=title)
        if kind not in (BYTE_LEVEL, PIECES, SPACED):
            said = "{model} has its words in a form that is not read here ({kind}); load its folder with safetensors"
            raise UnsupportedModel(said, model=title, kind=quoted(kind))
        words = facts.words()
        kinds = facts.numbers("token_type", int, len(words))
        scores = facts.numbers("scores", float, len(words)) if kind == PIECES else []
        while kinds and kinds[-1] == UNUSED:
            del kinds[-1]
        del words[len(kinds) :], scores[len(kinds) :]
        _check_work(facts, words, kinds, kind)
        merges = facts.merges({*words}) if kind != PIECES else []
        flags = (facts.flag(key) for key in ("add_bos_token", "add_eos_token", "add_space_prefix"))
        return cls(title, kind, splits, words, kinds, scores, merges, facts.roles(kinds, kind), *flags)

    def ids(self, *kinds: int) -> list[int]:
        """Those of words of these kinds."""
        return [index for index, kind in enumerate(self.kinds) if kind in kinds]

    @property
    def ends(self) -> list[int]:
        """The ids that end an answer, first those that the file names."""
        named = [self.roles[role] for role in ("eos", "eot", "eom") if role in self.roles]
        special = {self.words[index]: index for index in self.ids(CONTROL, USER)}
        found = {word for word in _ENDS if word in special}
        for word, all_of in _NO_ENDS.items():
            if any(others <= special.keys() for others in all_of):
                found.discard(word)
        return list(dict.fromkeys([*named, *sorted(special[word] for word in found)]))


def _check_work(facts: _Facts, words: list[str], kinds: list[int], kind: str) -> None:
    """Raises BrokenModel for words that would take minutes."""
    added = sum(len(word) for word, its in zip(words, kinds, strict=True) if its in (CONTROL, UNKNOWN, USER))
    if added > MOST_ADDED:
        raise facts.broken("its added words have {letters} letters, more than {most}", letters=added, most=MOST_ADDED)
    if (letters := sum(map(len, words))) > MOST_LETTERS:
        raise facts.broken("its words have {letters} letters, more than {most}", letters=letters, most=MOST_LETTERS)
    longest = max(words, key=len, default="")
    if kind == PIECES and len(longest) > MOST_PIECE:
        raise facts.broken("the word {word} has more than {most} letters", word=quoted(longest), most=MOST_PIECE)


class _Facts:
    """The metadata under `tokenizer.ggml`."""

    def __init__(self, metadata: Mapping[str, Value], title: str) -> None:
        self._metadata = metadata
        self._title = title

    def has(self, key: str) -> bool:
        return f"tokenizer.ggml.{key}" in self._metadata

    def text(self, key: str) -> str:
        value = self._metadata.get(f"tokenizer.ggml.{key}", "")
        return value if isinstance(value, str) else quoted(value)

    def flag(self, key: str) -> bool | None:
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        return value if isinstance(value, bool) else None

    def words(self) -> list[str]:
        """Empty ones get a name, as in llama.cpp. Raises BrokenModel where two are alike."""
        words = [word or f"[EMPTY_{index}]" for index, word in enumerate(self._list("tokens", str))]
        if len(set(words)) != len(words):
            [(twice, _)] = Counter(words).most_common(1)
            raise self.broken("it has the word {word} twice", word=quoted(twice))
        return words

    def numbers(self, key: str, kind: type[T], count: int) -> list[T]:
        """One for each word."""
        values = self._list(key, kind)
        if len(values) < count:
            raise self.broken("it has {count} words and {found} {key}", count=count, found=len(values), key=key)
        return values[:count]

    def merges(self, words: set[str]) -> list[tuple[str, str]]:
        """Each of two words to a third. A part may begin with a space: what separates them is not the first letter."""
        found = []
        for merge in self._list("merges", str):
            cut = merge.find(" ", 1)
            if cut < 0:
                raise self.broken("the merge {merge} has one part", merge=quoted(merge))
            left, right = merge[:cut], merge[cut + 1 :]
            if not {left, right, left + right} <= words:
                raise self.broken("the merge {merge} is not of its words", merge=quoted(merge))
            found.append((left, right))
        return found

    def roles(self, kinds: list[int], kind: str) -> dict[str, int]:
        """Ids beyond the words are none: some files write -1 for what they lack."""
        usual = {
            role: index for role, index in _USUAL_IDS.items() if kinds[index : index + 1] in ([CONTROL], [UNKNOWN])
        }
        found = dict(usual) if kind == PIECES else {}
        for role, key in _ROLES.items():
            value = self._metadata.get(f"tokenizer.ggml.{key}")
            if type(value) is int and 0 <= value < len(kinds):
                found[role] = value
        return found

    def _list(self, key: str, kind: type[T]) -> list[T]:
        values = self._metadata.get(f"tokenizer.ggml.{key}")
        if values is None:
            said = "{model} lacks tokenizer.ggml.{key}; load a newer GGUF file of it, or its folder with safetensors"
            raise UnsupportedModel(said, model=self._title, key=key)
        if not isinstance(values, list) or any(type(value) is not kind for value in values):
            raise self.broken("tokenizer.ggml.{key} is no list of {kind}", key=key, kind=kind.__name__)
        return [value for value in values if isinstance(value, kind)]

    def broken(self, reason: str, **values: str | int) -> BrokenModel:
        said = "the words of {model} are broken: {reason}; get this model again"
        return BrokenModel(said, model=self._title, reason=template(reason, **values))
