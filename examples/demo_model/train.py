"""Trains the demo model from nothing and writes its files: python examples/demo_model/train.py

It does not know what is in the corpus, nor how good the answers are; `evaluate.py` measures that.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

import corpus
import vocabulary

FOLDER = Path(__file__).parent
MOMENTUM = 0.95


@dataclass(frozen=True, slots=True)
class Settings:
    """How long and how fast to train."""

    minutes: float = 28.0
    steps: int = 0
    hidden: int = 128
    intermediate: int = 384
    tokens: int = 1536
    workers: int = 2
    rate: float = 0.02
    embedding_rate: float = 0.006
    decay_share: float = 0.7
    seed: int = 1
    save_every: float = 9.0
    out: Path = FOLDER


def build_model(settings: Settings, tokenizer: Tokenizer) -> LlamaForCausalLM:
    """An untrained model: 8 layers, grouped-query attention, tied embeddings."""
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=settings.hidden // 4,
        max_position_embeddings=vocabulary.CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=tokenizer.token_to_id(vocabulary.BOS),
        eos_token_id=tokenizer.token_to_id(vocabulary.END),
        pad_token_id=tokenizer.token_to_id(vocabulary.PAD),
    )
    return LlamaForCausalLM(config)


class Muon:
    """Momentum whose update is made orthogonal, for the matrices of the layers (K. Jordan et al., 2024).

    Matrices of one shape go through the Newton-Schulz iteration together, in float32.
    """

    def __init__(self, parameters: list[Tensor]) -> None:
        shapes: dict[tuple[int, ...], list[Tensor]] = {}
        for parameter in parameters:
            shapes.setdefault(tuple(parameter.shape), []).append(parameter)
        self._groups = list(shapes.values())
        self._momenta = [torch.zeros(len(group), *group[0].shape) for group in self._groups]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step with the gradients present."""
        for group, momentum in zip(self._groups, self._momenta, strict=True):
            gradient = torch.stack([parameter.grad for parameter in group if parameter.grad is not None])
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = _orthogonal(gradient.lerp(momentum, MOMENTUM))
            scale = max(1.0, update.shape[1] / update.shape[2]) ** 0.5
            for parameter, change in zip(group, update, strict=True):
                parameter.mul_(1 - 0.05 * rate).add_(change, alpha=-rate * scale)


def _orthogonal(matrices: Tensor) -> Tensor:
    """Newton-Schulz iteration of degree five on a stack of matrices [count, rows, columns]."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    update: Tensor = x.mT if tall else x
    return update


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded token ids [rows, length], and which positions the model has to predict."""

    ids: Tensor
    targets: Tensor


def batches(settings: Settings, tokenizer: Tokenizer, rank: int) -> Iterator[Batch]:
    """Endless batches of conversations of like length, so that little is padding."""
    seed = settings.seed * 1000 + rank
    stream, rng = corpus.conversations(seed), random.Random(seed)
    while True:
        encoded = vocabulary.encode(tokenizer, [next(stream) for _ in range(2048)])
        encoded.sort(key=lambda item: len(item[0]))
        found = list(_cut(encoded, settings.tokens))
        rng.shuffle(found)
        yield from found


def _cut(encoded: list[tuple[list[int], list[bool]]], tokens: int) -> Iterator[Batch]:
    rows: list[tuple[list[int], list[bool]]] = []
    for row in encoded:
        if rows and len(row[0]) * (len(rows) + 1) > tokens:
            yield _batch(rows)
            rows = []
        rows.append(row)


def _batch(rows: list[tuple[list[int], list[bool]]]) -> Batch:
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    spoken = torch.tensor([spoken + [False] * (longest - len(spoken)) for _, spoken in rows])
    return Batch(ids, torch.where(spoken, ids, -100))


def loss_of(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Mean cross-entropy over what the assistant says; padding is on the right, so causality hides it."""
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]  # [rows, length - 1, hidden]
    targets = batch.targets[:, 1:]
    wanted = targets != -100
    loss: Tensor = functional.cross_entropy(model.lm_head(hidden[wanted]), targets[wanted])
    return loss


def _schedule(progress: float, decay_share: float) -> float:
    """Factor on the learning rate: short warm-up, plateau, straight down to zero at the end."""
    return max(0.0, min(1.0, progress / 0.01 + 0.02, (1 - progress) / decay_share))


class Exchange:
    """Averages gradients between worker processes through shared memory.

    Processes of one thread each are used because threads that wait for each other at every matrix lose most of
    their time on a busy machine (measured beside other work, 192 wide, on 2 cores: 434 tokens/s with two threads,
    1580 with one). Two buffers take turns, so one barrier for each step is enough.
    """

    def __init__(self, workers: int, numbers: int) -> None:
        self._buffers = torch.zeros(2, workers, numbers + 1).share_memory_()
        self._barrier = multiprocessing.get_context("spawn").Barrier(workers)
        self._turn = 0

    def average(self, parameters: list[Tensor], rank: int, note: float) -> float:
        """Replace every gradient by its mean over the workers; returns the note of worker 0."""
        buffer = self._buffers[self._turn]
        flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        buffer[rank, :-1], buffer[rank, -1] = flat, note
        self._barrier.wait(timeout=600)  # a lost worker ends the others as well
        self._turn = 1 - self._turn
        mean, start = buffer[:, :-1].mean(0), 0
        for parameter in parameters:
            parameter.grad = mean[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        return float(buffer[0, -1])


class Clock:
    """Says how far the training is: by steps (the same result every time) or by minutes."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._start = settings, time.monotonic()

    @property
    def minutes(self) -> float:
        """Minutes since the start."""
        return (time.monotonic() - self._start) / 60

    def progress(self, step: int) -> float:
        """From 0 to 1."""
        return step / self._settings.steps if self._settings.steps else self.minutes / self._settings.minutes


def work(rank: int, settings: Settings, tokens_json: str, exchange: Exchange) -> None:
    """One worker: train until the time or the steps are used up; worker 0 writes usable files on the way."""
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_str(tokens_json)
    model = build_model(settings, tokenizer).train()
    named = list(model.named_parameters())
    muon = Muon([p for name, p in named if p.ndim == 2 and "embed" not in name])
    adam = torch.optim.Adam([p for name, p in named if p.ndim != 2 or "embed" in name], lr=1.0, betas=(0.9, 0.98))
    clock, saved, average, progress = Clock(settings), 0.0, 0.0, 0.0
    for step, batch in enumerate(batches(settings, tokenizer, rank)):
        factor = _schedule(progress, settings.decay_share)
        loss = loss_of(model, batch)
        loss.backward()
        progress = exchange.average([p for _, p in named], rank, clock.progress(step + 1))
        adam.param_groups[0]["lr"] = settings.embedding_rate * factor
        muon.step(settings.rate * factor)
        adam.step()
        model.zero_grad(set_to_none=True)
        average = 0.98 * average + 0.02 * loss.item()
        if rank == 0 and step % 20 == 0:
            mean = average / (1 - 0.98 ** (step + 1))
            print(f"step {step} {clock.minutes:.1f} min loss {mean:.4f} rate {factor:.2f}", flush=True)
        if rank == 0 and (progress >= 1 or clock.minutes - saved > settings.save_every):
            saved = clock.minutes
            write(model, tokenizer, settings.out)
        if progress >= 1:
            return


def train(settings: Settings) -> None:
    """Train the tokenizer, then the network in `settings.workers` processes."""
    tokenizer = vocabulary.train_tokenizer(settings.seed)
    numbers = sum(p.numel() for p in build_model(settings, tokenizer).parameters())
    print(f"{numbers:,} parameters", flush=True)
    exchange = Exchange(settings.workers, numbers)
    spawn = multiprocessing.get_context("spawn")
    workers = [
        spawn.Process(target=work, args=(rank, settings, tokenizer.to_str(), exchange))
        for rank in range(settings.workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a worker failed, see above")


def write(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write all files of the model, each by rename, the weights last."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as name:
        made = Path(name)
        rounded = LlamaForCausalLM(model.config).bfloat16()
        rounded.load_state_dict(model.state_dict())
        rounded.save_pretrained(made)
        end = tokenizer.token_to_id(vocabulary.END)
        GenerationConfig(
            do_sample=False,
            bos_token_id=model.config.bos_token_id,
            eos_token_id=end,
            pad_token_id=model.config.pad_token_id,
            max_new_tokens=512,
        ).save_pretrained(made)
        vocabulary.save_tokenizer(tokenizer, made)
        _tidy(made / "config.json", made / "generation_config.json")
        for path in sorted(made.iterdir(), key=lambda path: path.suffix == ".safetensors"):
            path.chmod(0o644)
            os.replace(path, folder / path.name)


def _tidy(*paths: Path) -> None:
    for path in paths:
        values = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in values.items() if k != "_name_or_path"}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    defaults = Settings()
    for field in dataclasses.fields(Settings):
        value = getattr(defaults, field.name)
        kind = Path if field.name == "out" else type(value)
        parser.add_argument("--" + field.name.replace("_", "-"), type=kind, default=value)
    train(Settings(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
