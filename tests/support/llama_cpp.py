"""Records how llama.cpp splits texts, for `tests/models/gguf/llama_cpp.json`: its ids by `tokenizer.ggml.pre`.

`python -m tests.support.llama_cpp` writes that file anew; it needs `pip install llama-cpp-python`, which compiles for
an hour, so the tests only read what was recorded. The texts have no combining marks and are in NFC: there llama.cpp
deviates from the published tokenizers on purpose.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.support.gguf_words import CONTROL, words_of, write_vocabulary
from together.models.gguf.patterns import SPLITTINGS

RECORDED = Path(__file__).parent.parent / "models" / "gguf" / "llama_cpp.json"
SPECIAL = ("<|begin|>", "<|end|>")
TEXTS = (
    "Hello world, I'm here and you're not. HE'S 'S we'Ll it'd",
    " leading  two   three    four     spaces ",
    "a\nb\n\nc\n\n\nd \n e\t\tf\r\n\r\ng \t\n",
    "1 12 123 1234 12345 3.14 1,000,000 2024-01-01 x1y22z333 ½ Ⅷ ١٢٣",
    "naïve café Ünïcödé straße École éCOLE",
    "camelCaseWords SNAKE_CASE kebab-case ABCdefGHI iPhone",
    "日本語のテキスト、中文文本。한국어 텍스트",
    "🙂🙂 ok 🦙!",
    "x = {'a': [1, 2], \"b\": None}\n    return x  # done\n\n\tif a != b:\n",
    "https://example.com/a?b=c&d=%20e /usr/bin//\n",
    '...!!!???---=== ("quoted") <tag/> $5 + 3^2 ~`|`',
    "<|begin|>user\n\nhi<|end|> x <|end|>",
    "שלום مرحبا Привет мир Γειά σου",
)


def vocabulary() -> tuple[list[str], list[list[str]]]:
    """Words and merges of a tokenizer that was taught these texts unsplit, so that wherever one splits, ids change."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([part for text in TEXTS for part in _parts(text)], trainer)
    described = json.loads(tokenizer.to_str())["model"]
    return words_of(tokenizer)[0], described["merges"]


def _parts(text: str) -> Iterator[str]:
    """Overlapping pieces, so that merges lie across every place where a text may be split."""
    yield from (text[at : at + size] for size in (3, 5, 8) for at in range(len(text) - size + 1))


def write_gguf(file: Path, words: list[str], merges: list[list[str]], pre: str) -> Path:
    kinds = [CONTROL if word in SPECIAL else 1 for word in words]

    def fill(writer: Any) -> None:
        writer.add_token_merges([" ".join(merge) for merge in merges])
        writer.add_bos_token_id(words.index(SPECIAL[0]))
        writer.add_eos_token_id(words.index(SPECIAL[1]))
        for key in ("context_length", "embedding_length", "block_count", "head_count", "feed_forward_length"):
            getattr(writer, f"add_{key}")(8)
        writer.add_layer_norm_rms_eps(1e-5)

    return write_vocabulary(file, "gpt2", words, kinds, fill, pre=pre)


def ids_of(file: Path, texts: tuple[str, ...]) -> list[list[int]]:
    """By llama.cpp itself."""
    import llama_cpp  # type: ignore[import-not-found]  # only where somebody records anew

    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), settings)
    assert model, f"llama.cpp refuses {file}"
    words, found = llama_cpp.llama_model_get_vocab(model), []
    for text in texts:
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(words, data, len(data), ids, len(ids), False, True)
        found.append(list(ids[:count]))
    llama_cpp.llama_model_free(model)
    return found


def main() -> None:
    words, merges = vocabulary()
    ways: dict[str, list[str]] = {}  # those that split alike, by their ids
    with tempfile.TemporaryDirectory() as folder:
        for pre in SPLITTINGS:
            ids = ids_of(write_gguf(Path(folder) / "words.gguf", words, merges, pre), TEXTS)
            ways.setdefault(json.dumps(ids, separators=(",", ":")), []).append(pre)
    facts = {"words": words, "merges": [" ".join(merge) for merge in merges], "texts": TEXTS}
    head = "".join(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)},\n" for key, value in facts.items())
    rest = ",\n".join(f'{{"pre": {json.dumps(names)},\n"ids": {ids}}}' for ids, names in ways.items())
    RECORDED.write_text(f'{{{head}"ways": [\n{rest}\n]}}\n', encoding="utf-8")
    print(f"{len(words)} words, {len(ways)} ways to split", file=sys.stderr)


if __name__ == "__main__":
    main()
