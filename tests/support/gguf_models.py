"""Tiny GGUF models with weights and words, as a person would have them: in one file or in several."""

from __future__ import annotations

from pathlib import Path

import gguf
from gguf import GGMLQuantizationType as Kind

from tests.support.gguf_files import make_plain, write_gguf

VOCABULARY = 320
MERGES = (("t", "h"), ("th", "e"))
_NORMAL, _CONTROL = 1, 3
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def usual(name: str, shape: tuple[int, ...]) -> Kind:
    """As Q4_K_M has it."""
    return Kind.Q6_K if "token" in name or "ffn_down" in name else Kind.Q4_K


def all_f16(name: str, shape: tuple[int, ...]) -> Kind:
    return Kind.F16


def make_gguf(
    folder: Path, name: str = "tiny.gguf", family: str = "llama", *, plain: bool = False, seed: int = 0
) -> Path:
    """A model of four layers in a file; `plain`: its matrices are F16."""
    folder.mkdir(parents=True, exist_ok=True)
    source = make_plain(folder.parent / f".plain-{folder.name}-{name}", family, vocab_size=VOCABULARY)
    choose = all_f16 if plain else usual
    return write_gguf(source, folder / name, choose, seed=seed, more=add_words)


def add_words(writer: gguf.GGUFWriter) -> None:
    """Every byte is a word."""
    letters = [*map(chr, [*range(33, 127), *range(161, 173), *range(174, 256)])]
    words = [*letters, *(chr(256 + index) for index in range(256 - len(letters)))]  # GPT-2's letters for bytes
    words += [left + right for left, right in MERGES]
    words += [f"<|{index}|>" for index in range(VOCABULARY - len(words))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([_NORMAL] * (256 + len(MERGES)) + [_CONTROL] * (VOCABULARY - 256 - len(MERGES)))
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_chat_template(TEMPLATE)


def split_gguf(file: Path, folder: Path, count: int = 3) -> list[Path]:
    """The model of `file` in several files, as llama-gguf-split makes them; layers lie in order."""
    reader = gguf.GGUFReader(file)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = list(reader.tensors)
    made = []
    for number in range(count):
        part = folder / f"{file.stem}-{number + 1:05d}-of-{count:05d}.gguf"
        writer = gguf.GGUFWriter(part, "llama")
        if number == 0:
            _copy_metadata(reader, writer)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(tensors))
        for tensor in tensors[number * len(tensors) // count : (number + 1) * len(tensors) // count]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        made.append(part)
    return made


def _copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(key, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
