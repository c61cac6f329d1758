"""The register tile of the matrix products, written as vector IR by one factory (design.md D2).

LLVM vectorises one row of a product well and several rows badly, so the tile says in IR what must
stay in registers.  Nothing outside this file knows how wide a register is but through `LANES`.
"""

import functools
import platform
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_features = binding.get_host_cpu_features()
REGISTER_BYTES = 64 if _features.get("avx512f") else 32 if _features.get("avx") else 16
FMAS = 1 if binding.get_host_cpu_name() == "znver4" else 2  # of a register, begun in a cycle

VECTORS = 2  # registers a panel of packed weights is wide
# Rows of a tile.  8 x 2 accumulators, 2 weights and a broadcast fill AVX-512's and NEON's 32
# registers without a spill; 12 x 2 spilled and was a third slower.  AVX2 has 16 registers: 6 x 2.
ROWS = 6 if REGISTER_BYTES == 32 else 8
TALLEST = 6 if REGISTER_BYTES == 32 else 9  # of one that is alone: a state and its 8 tangents
# A tile of few rows takes several panels side by side: two accumulators alone wait for the latency
# of the FMA, and one stream of weights reads L2 at half its bandwidth.  Prefetching the weights
# 4 to 24 steps of k ahead cost a row of 64 units 8 % and gave one of 256 nothing: L2 has no more.
PANELS = {1: 2, 2: 4, 3: 2} if ROWS == 8 else {1: 2, 2: 2, 3: 2}

# Accumulators up to which the two sums over k fit in the registers side by side.
TOGETHER = 4 if REGISTER_BYTES == 32 else 8


@functools.cache
def lanes(dtype: Any) -> int:
    """Elements of one register; every padded axis is a multiple of this."""
    return REGISTER_BYTES // np.dtype(dtype).itemsize


@intrinsic
def rows(typingctx, array, offset, stride):
    """(pointer, stride): rows of `array` from flat element `offset`, `stride` elements apart.

    A pointer and not a slice: slices count references, atomically, in the time loop.
    """
    pointer = types.CPointer(array.dtype)
    sig = types.Tuple((pointer, types.intp))(array, types.intp, types.intp)

    def codegen(context, builder, sig, args):
        array, offset, stride = args
        data = context.make_array(sig.args[0])(context, builder, array).data
        return context.make_tuple(builder, sig.return_type, (builder.gep(data, [offset]), stride))

    return sig, codegen


@intrinsic
def shifted(typingctx, place, offset, stride):
    """The rows `place` begun `offset` elements later and `stride` elements apart."""
    sig = place(place, types.intp, types.intp)

    def codegen(context, builder, sig, args):
        place, offset, stride = args
        pointer, _ = cgutils.unpack_tuple(builder, place)
        return context.make_tuple(
            builder, sig.return_type, (builder.gep(pointer, [offset]), stride)
        )

    return sig, codegen


def copy_run(registers: int = 0, elements: int = 0) -> Any:
    """A kernel that copies a run of whole registers or of so many elements between two `rows`.

    All loads before all stores: a loop in Numba must fear that the two arrays overlap.
    """

    @intrinsic
    def kernel(typingctx, source, target):
        def codegen(context, builder, sig, args):
            (s, _), (t, _) = (cgutils.unpack_tuple(builder, arg) for arg in args)
            vector, size = _vector(source)
            run = ir.VectorType(vector.element, registers * vector.count or elements)
            loaded = builder.load(builder.bitcast(s, run.as_pointer()), align=size, typ=run)
            builder.store(loaded, builder.bitcast(t, run.as_pointer())).align = size
            return context.get_dummy_value()

        return types.void(source, target), codegen

    return kernel


@intrinsic
def turn_block(typingctx, source, target):
    """target <- the transpose of source, both as many rows of a register as it has lanes.

    One bit of the number of a row and of that of a lane change places at a time.  Element by
    element it takes four times as long.
    """

    def codegen(context, builder, sig, args):
        (s, s_stride), (t, t_stride) = (cgutils.unpack_tuple(builder, arg) for arg in args)
        vector, size = _vector(source)
        lanes, i32, i64 = range(vector.count), ir.IntType(32), ir.IntType(64)

        def row(pointer, stride, i):
            return _register(
                builder, builder.gep(pointer, [builder.mul(stride, i64(i))]), 0, vector
            )

        y = [builder.load(row(s, s_stride, i), align=size, typ=vector) for i in lanes]
        bit = 1
        while bit < vector.count:
            low = [j if not j & bit else vector.count + j - bit for j in lanes]
            high = [j + bit if not j & bit else vector.count + j for j in lanes]
            masks = [ir.Constant(ir.VectorType(i32, vector.count), mask) for mask in (low, high)]
            for i in lanes:
                if not i & bit:
                    pair = y[i], y[i + bit]
                    y[i], y[i + bit] = (builder.shuffle_vector(*pair, mask) for mask in masks)
            bit *= 2
        for i in lanes:
            builder.store(y[i], row(t, t_stride, i)).align = size
        return context.get_dummy_value()

    return types.void(source, target), codegen


def _vector(place: Any) -> tuple[ir.VectorType, int]:
    """The register of the elements that the Numba type of `rows` points to, and their bytes."""
    single = place[0].dtype == types.float32
    element, size = (ir.FloatType(), 4) if single else (ir.DoubleType(), 8)
    return ir.VectorType(element, REGISTER_BYTES // size), size


def _register(builder: ir.IRBuilder, pointer: Any, v: int, vector: ir.VectorType) -> Any:
    """A pointer to the v-th register from `pointer` on."""
    pointer = builder.gep(pointer, [ir.IntType(64)(v * vector.count)])
    return builder.bitcast(pointer, vector.as_pointer())


_L1, _L2 = 3, 2
_SOON = 12  # steps of k of a tile of many rows: some hundred cycles, which L2 takes at its slowest


def _fetch(builder: ir.IRBuilder, pointer: Any, cache: int) -> None:
    """Have the line at `pointer`, wherever that is, brought to a cache."""
    i32, byte = ir.IntType(32), ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32]), "llvm.prefetch.p0i8"
    )
    builder.call(function, [builder.bitcast(pointer, byte), i32(0), i32(cache), i32(1)])


# x86's MXCSR: subnormal results become 0.  Operands stay what they are: relu's slope at a subnormal
# h of the forward pass is 1.
_FLUSH = 0x8000


@intrinsic
def flush_subnormals(typingctx):
    """From here on subnormal results of this thread are 0; the state that `restore` takes.

    Intel's processors take some hundred cycles for an FMA with one, and a gradient that vanishes
    goes through all of them: some 30 steps took as long as 2000.
    """

    def codegen(context, builder, sig, args):
        i32 = ir.IntType(32)
        if platform.machine() not in ("x86_64", "AMD64"):
            return i32(0)
        before, after = cgutils.alloca_once(builder, i32), cgutils.alloca_once(builder, i32)
        _control(builder, "st", before)
        state = builder.load(before)
        builder.store(builder.or_(state, i32(_FLUSH)), after)
        _control(builder, "ld", after)
        return state

    return types.int32(), codegen


@intrinsic
def restore(typingctx, state):
    """Subnormal results are again what they were when `flush_subnormals` was called."""

    def codegen(context, builder, sig, args):
        if platform.machine() in ("x86_64", "AMD64"):
            place = cgutils.alloca_once(builder, ir.IntType(32))
            builder.store(args[0], place)
            _control(builder, "ld", place)
        return context.get_dummy_value()

    return types.void(types.int32), codegen


def _control(builder: ir.IRBuilder, which: str, place: Any) -> None:
    """Store ("st") or load ("ld") the register that says how this thread rounds."""
    byte = ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [byte]), f"llvm.x86.sse.{which}mxcsr"
    )
    builder.call(function, [builder.bitcast(place, byte)])


@intrinsic
def fetch(typingctx, place):
    """Have the cache line at `place` brought to L1 while the processor goes on."""

    def codegen(context, builder, sig, args):
        pointer, _ = cgutils.unpack_tuple(builder, args[0])
        _fetch(builder, pointer, _L1)
        return context.get_dummy_value()

    return types.void(place), codegen


class _Loop:
    """Accumulators of a tile, and the loop over k that fills them."""

    def __init__(self, builder: Any, vector: ir.VectorType, size: int, fma: Any) -> None:
        self.builder, self.vector, self.size, self.fma = builder, vector, size, fma

    def run(self, m0: Any, m1: Any, begun: list[list[Any]], one_step: Any) -> list[list[Any]]:
        """one_step(sums, stream, m) for m0 <= m < m1 and each stream of sums in `begun`."""
        builder, m_type = self.builder, ir.IntType(64)
        entry = builder.block
        head, body, done = (builder.append_basic_block(name) for name in ("k", "fma", "end"))
        builder.branch(head)
        builder.position_at_end(head)
        m = builder.phi(m_type)
        m.add_incoming(m0, entry)
        sums = [[builder.phi(self.vector) for _ in stream] for stream in begun]
        builder.cbranch(builder.icmp_signed("<", m, m1), body, done)
        builder.position_at_end(body)
        updated = [one_step(sums[stream], stream, m) for stream in range(len(begun))]
        m.add_incoming(builder.add(m, m_type(1)), body)
        for phis, firsts, laters in zip(sums, begun, updated, strict=True):
            for phi, first, later in zip(phis, firsts, laters, strict=True):
                phi.add_incoming(first, entry)
                phi.add_incoming(later, body)
        builder.branch(head)
        builder.position_at_end(done)
        return sums

    def once(self, wanted: Any, begun: list[Any], one_step: Any, m: Any) -> list[Any]:
        """One more step m of the one stream `begun` if `wanted`."""
        builder, before = self.builder, self.builder.block
        with builder.if_then(wanted):
            updated = one_step(begun, 0, m)
            inside = builder.block
        sums = [builder.phi(self.vector) for _ in begun]
        for phi, first, later in zip(sums, begun, updated, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(later, inside)
        return sums


def tile(height: int, panels: int = 1, vectors: int = VECTORS, kind: str = "") -> Any:
    """A kernel for `height` rows of C and `panels` panels of packed weights.

    C = (S + A1 W1) + A2 W2, each element two sums over the halves of k in order: a tile of one row
    would else wait for the latency of the FMA.  Every tile adds in this order, so that the bits of
    an element do not depend on the tile it falls into; in a "long" one the second half comes after
    the first, as where there are many rows.  If "transposed", C = S + (A' W), one sum.
    A, W, S and C are `rows`: A (height,K), or (K,height) if transposed; W (panels,K,width) with
    the panels at its stride; S and C (height, panels·width), S with stride 0 being one vector for
    all rows.  Of `ahead`, `rows` too, a tile of many rows fetches K into L2, a line of each: what
    is needed next from further away.
    """
    across, transposed = range(panels * vectors), kind == "transposed"
    fetching = panels == 1 and height * vectors > TOGETHER

    @intrinsic
    def kernel(typingctx, A, W, K, S, C, ahead):
        sig = types.void(A, W, types.intp, S, C, ahead)
        i32, i64 = ir.IntType(32), ir.IntType(64)
        vector, size = _vector(W)
        width = vector.count
        undefined = ir.Constant(vector, ir.Undefined)
        everywhere = ir.Constant(ir.VectorType(i32, width), [0] * width)
        zeros = [ir.Constant(vector, [0.0] * width)] * (height * len(across))

        def codegen(context, builder, sig, args):
            (a, lda), (w, ldw), (s, lds), (c, ldc), (next_w, next_ld) = (
                cgutils.unpack_tuple(builder, args[i]) for i in (0, 1, 3, 4, 5)
            )
            K = args[2]
            fma = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(vector, [vector] * 3),
                f"llvm.fmuladd.v{width}f{8 * size}",
            )
            loop = _Loop(builder, vector, size, fma)

            def row(pointer, stride, r):
                return builder.gep(pointer, [builder.mul(stride, r)])

            def hidden(pointer):
                """The pointer, of unknown origin.

                Else LLVM makes those of the rows from one another, at every step of k, on the ports
                that the FMAs need: up to a tenth slower.
                """
                kept = ir.FunctionType(pointer.type, [pointer.type])
                return builder.asm(kept, "", "=r,0", [pointer], False)

            def registers(pointer, stride):
                return [
                    _register(builder, row(pointer, stride, i64(r)), v, vector)
                    for r in range(height)
                    for v in across
                ]

            def loaded(pointers):
                return [builder.load(p, align=size, typ=vector) for p in pointers]

            def one_step(sums, stream, m):
                k = builder.add(m, firsts[stream])
                weights = loaded(
                    _register(builder, row(row(w, ldw, i64(p)), k, i64(vectors * width)), v, vector)
                    for p in range(panels)
                    for v in range(vectors)
                )
                if fetching:
                    _fetch(builder, row(next_w, next_ld, k), _L2)
                    for v in range(vectors):
                        later = row(w, i64(vectors * width), builder.add(k, i64(_SOON)))
                        _fetch(builder, _register(builder, later, v, vector), _L1)
                updated = []
                for r in range(height):
                    source = builder.gep(sources[r], [builder.mul(k, lda) if transposed else k])
                    element = builder.load(source, typ=vector.element)
                    one = builder.insert_element(undefined, element, i32(0))
                    one = builder.shuffle_vector(one, undefined, everywhere)
                    updated += [
                        builder.call(fma, [one, weights[v], sums[r * len(across) + v]])
                        for v in across
                    ]
                return updated

            none = i64(0)
            sources = [
                builder.gep(a, [i64(r)]) if transposed else hidden(row(a, lda, i64(r)))
                for r in range(height)
            ]
            if transposed:
                firsts = [none]
                for pointer in registers(s, lds):  # long before they are added to
                    _fetch(builder, pointer, _L1)
                (total,) = loop.run(none, K, [zeros], one_step)
                other = loaded(registers(s, lds))
            else:
                less = builder.lshr(K, i64(1))
                more = builder.sub(K, less)
                firsts = [none, more]
                start = loaded(registers(s, lds))
                if kind != "long" and height * len(across) <= TOGETHER:
                    total, other = loop.run(none, less, [start, zeros], one_step)
                    total = loop.once(builder.icmp_signed("<", less, more), total, one_step, less)
                else:
                    (total,) = loop.run(none, more, [start], one_step)
                    firsts = [more]
                    (other,) = loop.run(none, less, [zeros], one_step)
            for pointer, one, two in zip(registers(c, ldc), total, other, strict=True):
                builder.store(builder.fadd(one, two), pointer).align = size
            return context.get_dummy_value()

        return sig, codegen

    return kernel
