"""Loops in this processor's own machine code, made by LLVM when they are needed, and run by torch's threads."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

try:
    import llvmlite.binding as llvm
    from llvmlite import ir
except ImportError:  # not every platform has it
    llvm = None

FLOATS = torch.float32, torch.bfloat16, torch.float16  # what loops read and write
_WIDE, _NARROW = 16, 8  # fp32 numbers in a vector, with AVX-512 and without
_REGISTERS = {_WIDE: 32, _NARROW: 16}  # for such vectors
_IN_TURN = """
define void @run(ptr %jobs) {
begin:
  %count = load i64, ptr %jobs
  %second = getelementptr i64, ptr %jobs, i64 1
  %function = load ptr, ptr %second
  br label %next
next:
  %index = phi i64 [0, %begin], [%after, %next]
  %place = add i64 %index, 2
  %here = getelementptr i64, ptr %jobs, i64 %place
  %job = load ptr, ptr %here
  call void %function(ptr %job)
  %after = add i64 %index, 1
  %more = icmp slt i64 %after, %count
  br i1 %more, label %next, label %end
end:
  ret void
}
"""


@dataclass(frozen=True, slots=True)
class CompiledLoop:
    """A function that takes a job's address; the engine owns its code."""

    engine: Any
    address: int

    def __call__(self, outputs: int, step: int, *values: int) -> None:
        """Do a job on all of torch's threads: `step` outputs at a time, each by the thread that comes first."""
        job = array("q", (0, outputs, step, *values))
        run_function(self.address, job.buffer_info()[0], -(-outputs // step))

    def all(self, jobs: Sequence[Sequence[int]]) -> None:
        """Do jobs, each given as one alone is: whoever finds nothing left of one goes on to the next."""
        listed, places = array("q", [len(jobs), self.address, *[0] * len(jobs)]), []
        for job in jobs:
            places.append(len(listed))
            listed.extend((0, *job))
        start = listed.buffer_info()[0]
        for index, place in enumerate(places):
            listed[2 + index] = start + 8 * place
        run_function(_in_turn().address, start, sum(-(-job[0] // job[1]) for job in jobs))


@cache
def lanes() -> int:
    """fp32 numbers that this processor multiplies at once; 0 where nothing can be compiled."""
    if llvm is None:
        return 0
    try:
        return _WIDE if llvm.get_host_cpu_features().get("avx512f") else _NARROW
    except RuntimeError:  # LLVM does not know this processor
        return 0


def is_x86() -> bool:
    """Whether LLVM's names for this processor's instructions begin with x86."""
    return llvm is not None and str(llvm.get_default_triple()).startswith(("x86", "i386", "i686"))


def has_dot_products() -> bool:
    """Whether it sums products of bytes, four at a time."""
    return lanes() > 0 and _has("avx512vnni" if lanes() == _WIDE else "avxvnni")


def has_bf16_products() -> bool:
    """Whether it sums products of bf16 numbers, two at a time."""
    return lanes() == _WIDE and _has("avx512bf16")


@cache
def _has(feature: str) -> bool:
    return bool(llvm.get_host_cpu_features().get(feature))


def registers() -> int:
    """How many vectors the processor holds."""
    return _REGISTERS[lanes()]


@cache
def _bf16() -> Any:
    """LLVM's type, for which llvmlite has no name."""

    class BFloat(ir.Type):  # type: ignore[misc]
        def _to_string(self) -> str:
            return "bfloat"

    return BFloat()


class Code:
    """A loop's body as it is written: over some outputs of a job, which are those from `start` to `stop`."""

    def __init__(self) -> None:
        self.module = ir.Module()
        self.module.triple = llvm.get_default_triple()
        self.i64, self.i32, self.f32, self._pointer = ir.IntType(64), ir.IntType(32), ir.FloatType(), ir.PointerType()
        self.vector, self.words = self._vector(self.f32), self._vector(ir.IntType(32))
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [self._pointer]), "run")
        self.build = ir.IRBuilder(function.append_basic_block())
        self._job = function.args[0]
        self.outputs, self._step = self.field(1), self.field(2)
        self._next = self.build.append_basic_block()
        self.build.branch(self._next)
        self.build.position_at_end(self._next)
        self.start, self.stop = self._take()

    def _take(self) -> tuple[Any, Any]:
        """The next outputs that nobody has taken; where there are none, the function ends."""
        build = self.build
        start = build.atomic_rmw("add", self._job, self._step, "monotonic")
        rest, done = build.append_basic_block(), build.append_basic_block()
        build.cbranch(build.icmp_signed("<", start, self.outputs), rest, done)
        build.position_at_end(done)
        build.ret_void()
        build.position_at_end(rest)
        return start, self.least(build.add(start, self._step), self.outputs)

    def finish(self, *, unrolled: bool = True) -> CompiledLoop:
        """Compile what was written; it goes on with the next outputs. Loops may be `unrolled` further than they are."""
        self.build.branch(self._next)
        return _compiled(str(self.module), unrolled=unrolled)

    def field(self, place: int, *, pointer: bool = False) -> Any:
        """Of the job: `outputs` and `step` are the first two, and values follow from 3 on."""
        kind = self._pointer if pointer else self.i64
        return self.load(self._job, kind, self.number(place * 8))

    def number(self, value: int) -> Any:
        return ir.Constant(self.i64, value)

    def zero(self) -> Any:
        return ir.Constant(self.vector, [0.0] * lanes())

    def least(self, one: Any, other: Any) -> Any:
        return self.build.select(self.build.icmp_signed("<", one, other), one, other)

    def at(self, pointer: Any, offset: Any) -> Any:
        """So many bytes further."""
        return self.build.gep(pointer, [offset], source_etype=ir.IntType(8))

    def load(self, pointer: Any, kind: Any, offset: Any) -> Any:
        return self.build.load(self.at(pointer, offset), typ=kind, align=1)

    def store(self, value: Any, pointer: Any, offset: Any) -> None:
        self.build.store(value, self.at(pointer, offset), align=1)

    def read(self, dtype: torch.dtype, pointer: Any, offset: Any) -> Any:
        """A vector of fp32 numbers from numbers in `dtype`."""
        return self._read(dtype, pointer, offset, self.vector)

    def one(self, dtype: torch.dtype, pointer: Any, place: Any) -> Any:
        """The number at a place of numbers in `dtype`, as fp32."""
        return self._read(dtype, pointer, self.build.mul(place, self.number(dtype.itemsize)), self.f32)

    def _read(self, dtype: torch.dtype, pointer: Any, offset: Any, kind: Any) -> Any:
        """In the `kind` of fp32 numbers."""
        if dtype == torch.float32:
            return self.load(pointer, kind, offset)
        if dtype == torch.float16:
            return self.build.fpext(self.load(pointer, self._like(kind, ir.HalfType()), offset), kind)
        whole = self._like(kind, ir.IntType(32))  # bf16 is the upper half of fp32
        bits = self.build.zext(self.load(pointer, self._like(kind, ir.IntType(16)), offset), whole)
        return self.build.bitcast(self.build.shl(bits, self._every(whole, 16)), kind)

    def write(self, dtype: torch.dtype, value: Any, pointer: Any, offset: Any) -> None:
        """One fp32 number or a vector of them, rounded to `dtype`."""
        if dtype == torch.bfloat16:
            value = self._to_bf16(value)
        elif dtype == torch.float16:
            value = self.build.fptrunc(value, self._like(value.type, ir.HalfType()))
        self.store(value, pointer, offset)

    def _to_bf16(self, value: Any) -> Any:
        """To the nearest, to even ones between two; what is no number stays none."""
        build, kind = self.build, self._like(value.type, ir.IntType(32))
        every = partial(self._every, kind)
        bits = build.bitcast(value, kind)
        odd = build.and_(build.lshr(bits, every(16)), every(1))
        rounded = build.add(bits, build.add(odd, every(0x7FFF)))
        found = build.select(build.fcmp_unordered("uno", value, value), build.or_(bits, every(0x400000)), rounded)
        return build.trunc(build.lshr(found, every(16)), self._like(value.type, ir.IntType(16)))

    def _like(self, kind: Any, one: Any) -> Any:
        """So many of `one` as `kind` has numbers."""
        return ir.VectorType(one, kind.count) if isinstance(kind, ir.VectorType) else one

    def _every(self, kind: Any, number: int) -> Any:
        return ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else number)

    def _vector(self, kind: Any) -> Any:
        return ir.VectorType(kind, lanes())

    def splat(self, value: Any) -> Any:
        """In every lane."""
        nothing = ir.Constant(self._vector(value.type), ir.Undefined)
        first = self.build.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
        return self.shuffled(first, nothing, [0] * lanes())

    def float(self, value: float) -> Any:
        return ir.Constant(self.f32, value)

    def whole(self, value: int) -> Any:
        """32 bits in every lane."""
        return ir.Constant(self.words, [value] * lanes())

    def dot(self, sums: Any, unsigned: Any, signed: Any) -> Any:
        """Sums of 32 bits and the products of the four bytes in each lane."""
        name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes()}"
        four = ir.VectorType(ir.IntType(8), 4 * lanes())
        call = self._function(name, self.words, (self.words, four, four))
        return self.build.call(call, (sums, self.build.bitcast(unsigned, four), self.build.bitcast(signed, four)))

    def pairs(self, pointer: Any, offset: Any) -> Any:
        """Two bf16 numbers for each lane, as `dot_pairs` takes them."""
        return self.load(pointer, self._vector(ir.IntType(32)), offset)

    def dot_pairs(self, sums: Any, one: Any, other: Any) -> Any:
        """Sums in fp32 and the products of each lane's two bf16 numbers; those near zero count as zero."""
        pairs = ir.VectorType(_bf16(), 2 * lanes())
        call = self._function(f"llvm.x86.avx512bf16.dpbf16ps.{32 * lanes()}", self.vector, (self.vector, pairs, pairs))
        return self.build.call(call, (sums, self.build.bitcast(one, pairs), self.build.bitcast(other, pairs)))

    def small(self, value: Any) -> Any:
        """To the nearest whole numbers of 8 bits; what is no number becomes 0."""
        kind = self._vector(ir.IntType(8))
        near = self.build.call(self._function(f"llvm.rint.v{lanes()}f32", self.vector, (self.vector,)), (value,))
        return self.build.call(
            self._function(f"llvm.fptosi.sat.v{lanes()}i8.v{lanes()}f32", kind, (self.vector,)), (near,)
        )

    def larger(self, one: Any, other: Any) -> Any:
        """Of the sizes of two vectors' numbers."""
        sizes = [
            self.build.bitcast(
                self.build.and_(self.build.bitcast(each, self.words), self.whole(0x7FFFFFFF)), self.vector
            )
            for each in (one, other)
        ]
        return self.greater(*sizes)

    def greater(self, one: Any, other: Any) -> Any:
        return self.build.select(self.build.fcmp_ordered(">", one, other), one, other)

    def fma(self, one: Any, other: Any, sum_: Any) -> Any:
        call = self._function(f"llvm.fma.v{lanes()}f32", self.vector, (self.vector,) * 3)
        return self.build.call(call, (one, other, sum_))

    def root(self, number: Any) -> Any:
        """The square root of an fp32 number."""
        return self.build.call(self._function("llvm.sqrt.f32", self.f32, (self.f32,)), (number,))

    def total(self, vector: Any) -> Any:
        """Of the vector's numbers, in pairs."""
        return self.joined(vector, self.build.fadd)

    def joined(self, vector: Any, join: Callable[[Any, Any], Any]) -> Any:
        """One number of all of a vector's, in pairs."""
        width = lanes()
        while width > 1:
            width //= 2
            low, high = (self.shuffled(vector, vector, range(at, at + width)) for at in (0, width))
            vector = join(low, high)
        return self.build.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    def shuffled(self, one: Any, other: Any, places: Sequence[int]) -> Any:
        """Numbers of two vectors, by their places in both."""
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), list(places))
        return self.build.shuffle_vector(one, other, mask)

    @contextmanager
    def loop(self, start: Any, stop: Any, step: int, sums: Sequence[Any] = ()) -> Iterator[tuple[Any, list[Any]]]:
        """From `start` up to `stop`. Yields the index and the sums, which the body replaces; whole afterwards."""
        build, before = self.build, self.build.block
        head, body, after = (build.append_basic_block() for _ in range(3))
        build.branch(head)
        build.position_at_end(head)
        index, carried = build.phi(self.i64), [build.phi(each.type) for each in sums]
        index.add_incoming(start, before)
        for phi, first in zip(carried, sums, strict=True):
            phi.add_incoming(first, before)
        build.cbranch(build.icmp_signed("<", index, stop), body, after)
        build.position_at_end(body)
        found = list(carried)
        yield index, found
        index.add_incoming(build.add(index, self.number(step)), build.block)
        for phi, value in zip(carried, found, strict=True):
            phi.add_incoming(value, build.block)
        build.branch(head)
        build.position_at_end(after)
        found[:] = carried

    def _function(self, name: str, result: Any, takes: Sequence[Any]) -> Any:
        known = self.module.globals.get(name)
        return known or ir.Function(self.module, ir.FunctionType(result, takes), name)


def _compiled(text: str, *, unrolled: bool = True) -> CompiledLoop:
    machine = _machine()
    module = llvm.parse_assembly(text)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = unrolled
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return CompiledLoop(engine, engine.get_function_address("run"))


def _machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3)


@cache
def _in_turn() -> CompiledLoop:
    """Takes a list: how many jobs there are, their function, and where they lie."""
    return ir_function(_IN_TURN)


def ir_function(text: str) -> CompiledLoop:
    """A function `run` in LLVM's language, which takes an address."""
    return _compiled(f'target triple = "{llvm.get_default_triple()}"{text}')


def run_function(function: int, argument: int, tasks: int) -> None:
    """Call it on all of torch's threads, but on no more than there are tasks."""
    threads = min(torch.get_num_threads(), tasks)
    if threads == 1:
        _called(function)(argument)
    else:
        _parallel()(function, argument, threads)


@cache
def _parallel() -> Callable[[int, int, int], object]:
    """Calls a function of machine code on so many threads, with the same argument.

    By the OpenMP that torch uses, so that there are no other threads for them to wait for. Where it has no such call
    (Windows), by threads of our own.
    """
    try:
        call = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return _by_own_threads
    call.argtypes, call.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return lambda function, job, threads: call(function, job, threads, 0)


@cache
def _called(address: int) -> Callable[[int], object]:
    """The function there, for the thread that asks alone."""
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)


def _by_own_threads(function: int, job: int, threads: int) -> None:
    call = _called(function)
    others = [_own_threads().submit(call, job) for _ in range(threads - 1)]
    call(job)
    for other in others:
        other.result()


@cache
def _own_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(torch.get_num_threads(), 1), "product")
