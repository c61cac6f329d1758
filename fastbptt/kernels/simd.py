"""The processor's registers, and what LLVM has to be told of memory in its own language (IR).

Nothing outside this file knows how many elements a register has but through `lanes`, `lanes_of`
and, where code is made for a Numba type, `elements`.
"""

import functools
import platform
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_X86 = platform.machine() in ("x86_64", "AMD64")
_features = binding.get_host_cpu_features()
REGISTER_BYTES = 64 if _features.get("avx512f") else 32 if _features.get("avx") else 16
REGISTERS = 16 if _X86 and REGISTER_BYTES < 64 else 32
_HOST = binding.get_host_cpu_name()
# Whether `fused` is one instruction of this processor.
FUSED = bool(_features.get("fma")) if _X86 else platform.machine().lower() in ("aarch64", "arm64")
# FMAs of a register that begin in a cycle: Zen 4 has two pipes of 256 bits.
FMAS = 1 if REGISTER_BYTES == 64 and _HOST == "znver4" else 2
# Whether constants of curves are hidden from LLVM: see `kept`.
_HIDES = REGISTERS == 16 or _HOST in ("znver4", "znver5")

VECTORS = 2  # registers a panel of packed weights is wide


@functools.cache
def lanes(dtype: Any) -> int:
    """Elements of one register; every padded axis is a multiple of this."""
    return REGISTER_BYTES // np.dtype(dtype).itemsize


def elements(dtype: types.Type) -> int:
    """`lanes` of a Numba type."""
    return REGISTER_BYTES * 8 // dtype.bitwidth


@intrinsic
def lanes_of(typingctx, array):
    """`lanes` of what is in an array or in `rows`.

    A number that LLVM does not know: it would make more of the loops over panels and blocks than
    they are worth, and a step of a GRU of 64 units took 3 % longer.
    """
    dtype = array.dtype if isinstance(array, types.Array) else array[0].dtype

    def codegen(context, builder, sig, args):
        return of_unknown_origin(builder, context.get_constant(types.intp, elements(dtype)), "r")

    return types.intp(array), codegen


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
            vector, size = vector_of(source)
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
        vector, size = vector_of(source)
        lanes, i32, i64 = range(vector.count), ir.IntType(32), ir.IntType(64)

        def row(pointer, stride, i):
            return register_at(
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


def vector_of(place: Any) -> tuple[ir.VectorType, int]:
    """The register of the elements that the Numba type of `rows` points to, and their bytes."""
    single = place[0].dtype == types.float32
    element, size = (ir.FloatType(), 4) if single else (ir.DoubleType(), 8)
    return ir.VectorType(element, REGISTER_BYTES // size), size


def register_at(builder: ir.IRBuilder, pointer: Any, v: int, vector: ir.VectorType) -> Any:
    """A pointer to the v-th register from `pointer` on."""
    pointer = builder.gep(pointer, [ir.IntType(64)(v * vector.count)])
    return builder.bitcast(pointer, vector.as_pointer())


@intrinsic
def fused(typingctx, a, b, c):
    """a b + c, rounded once: where no instruction does that, by a function of C, slowly."""

    def codegen(context, builder, sig, args):
        return builder.fma(*args)

    return a(a, a, a), codegen


TO_L1, TO_L2 = 3, 2


def prefetch(builder: ir.IRBuilder, pointer: Any, cache: int) -> None:
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

    Intel's processors take some hundred cycles for an FMA with one.  A gradient that vanishes goes
    through all of them, and 30 of its steps took as long as 2000; gates that are all but closed,
    exp(-90) say, are such numbers, and saturated LSTMs took five times as long.
    """

    def codegen(context, builder, sig, args):
        i32 = ir.IntType(32)
        if not _X86:
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
        if _X86:
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


def of_unknown_origin(builder: ir.IRBuilder, value: Any, register: str) -> Any:
    """The value, from an instruction that LLVM cannot look into; `register` as in its asm."""
    same = ir.FunctionType(value.type, [value.type])
    return builder.asm(same, "", f"={register},0", [value], False)


@intrinsic
def kept(typingctx, constants):
    """The constants, one or a tuple, the floating-point ones of unknown value.

    With 16 registers LLVM makes most constants of tanh anew at every turn of a loop, each by a load
    of its own from a scalar, and the processor looks no further ahead than its registers last.
    What it does not know it stores before the loop, as a whole vector, which an instruction takes
    from memory by itself: a step of the plain net's units takes 0.8 of the time.  With 32 registers
    they stay there: one sequence of 64 units takes 0.98 on Zen 4; on Zen 5 a stream of one probe
    0.92, of eight 0.96, an LSTM over 32 sequences 0.99, over one 1.01 to 1.03.
    """

    def hide(builder, value):
        if isinstance(value.type, (ir.FloatType, ir.DoubleType)):
            hidden = of_unknown_origin(builder, value, "x")
            for attribute in ("nounwind", "readnone"):  # so that it leaves the loop
                hidden.attributes.add(attribute)
            return hidden
        if isinstance(value.type, ir.Aggregate):
            for i in range(len(value.type)):
                part = hide(builder, builder.extract_value(value, i))
                value = builder.insert_value(value, part, i)
        return value

    def codegen(context, builder, sig, args):
        return hide(builder, args[0]) if _HIDES else args[0]

    return constants(constants), codegen


def _fetching(cache: int) -> Any:
    @intrinsic
    def fetch(typingctx, place):
        def codegen(context, builder, sig, args):
            pointer, _ = cgutils.unpack_tuple(builder, args[0])
            prefetch(builder, pointer, cache)
            return context.get_dummy_value()

        return types.void(place), codegen

    return fetch


# Have the cache line at a place brought to L1 (`fetch`) or L2 while the processor goes on.
fetch, fetch_to_L2 = _fetching(TO_L1), _fetching(TO_L2)
