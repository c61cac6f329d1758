"""The register tile of the matrix products, written as vector IR (design.md D2).

LLVM vectorises one row of a product well and several rows badly, so the tile says in IR what must
stay in registers.
"""

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import (
    FMAS,
    REGISTER_BYTES,
    REGISTERS,
    TO_L1,
    TO_L2,
    VECTORS,
    of_unknown_origin,
    prefetch,
    register_at,
    vector_of,
)

# Rows of a tile.  8 x 2 accumulators, 2 weights and a broadcast fill AVX-512's and NEON's 32
# registers without a spill; 12 x 2 spilled and was a third slower.  AVX2 has 16 registers: 6 x 2.
ROWS = 6 if REGISTERS == 16 else 8
TALLEST = 6 if REGISTERS == 16 else 9  # of one that is alone: a state and its 8 tangents
# A tile of few rows takes several panels side by side: two accumulators alone wait for the latency
# of the FMA, and one stream of weights reads L2 at half its bandwidth.  Prefetching the weights
# 4 to 24 steps of k ahead cost a row of 64 units 8 % and gave one of 256 nothing: L2 has no more.
PANELS = {1: 2, 2: 4, 3: 2} if ROWS == 8 else {1: 2, 2: 2, 3: 2}
# Accumulators up to which the two sums over k fit in the registers side by side.
TOGETHER = REGISTERS // 4
# Whether weights that no one else asks for are fetched, to L1 by the tile that reads them and to L2
# by those of the panel before, however many they are.  AVX2's products wait for loads and not for
# caches, as far as L2 and Zen 3 go: without it they run 5 to 25 % faster.
WEIGHTS_AHEAD = REGISTERS == 32
# Elements of a single row that come with one load, for shuffles to spread.  Where one FMA begins in
# a cycle, so does one load: a load for each k took the place of a weight, and a product of 64 by 64
# units 330 cycles and not 290.  AVX2's loads are as scarce, two beside two FMAs, and its shuffles
# need not take an FMA's place: a step of 64 units takes 0.95 of the time.  With AVX-512 they do.
_GROUP = 4 if FMAS == 1 or REGISTER_BYTES == 32 else 1
# Steps of k in one turn of the loop of a tile of several rows and panels: LLVM by itself makes that
# two, and a product of nine rows and 64 by 64 weights ran at 86 GFLOP/s and not 92.
_UNROLLED = 4 if REGISTERS == 16 else 1
# Those of a transposed one, at the first of which it fetches a line, so that as many tiles together
# have da's next columns brought.  All of them by the first tile, a line at each k, was more at once
# than a core can wait for: the gradients of 256 to 1024 units took 1.05 to 1.07 times as long
# (Granite Rapids).
SPREAD = 4
_LINE = max(1, 64 // REGISTER_BYTES)  # registers of a cache line
_SOON = 12  # steps of k of a tile of many rows: some hundred cycles, which L2 takes at its slowest
# Steps of k from which a tile fetches what the tile below it begins with, which comes from L3 where
# rows are long.  With it a pass over 64 sequences of an LSTM of 512 or 1024 units takes 0.94 to
# 0.98 of the time, of a GRU 0.99, a train step of 1024 units 0.92 (Zen 3); some lines are nothing
# beside so many steps.  Tried there: W by 256 k at a time, for which L1 has room (1.0 to 1.03), and
# huge pages (0.98 to 1.0).
_BELOW_FROM = 256


class _Place(NamedTuple):
    """`rows` as the tile sees them."""

    pointer: Any
    stride: Any

    def row(self, builder: Any, r: Any) -> Any:
        return builder.gep(self.pointer, [builder.mul(self.stride, r)])

    def moved(self, builder: Any, elements: Any) -> "_Place":
        return _Place(builder.gep(self.pointer, [elements]), self.stride)


class _Loop:
    """Accumulators of a tile, and the loop over k that fills them."""

    def __init__(self, builder: Any, vector: ir.VectorType) -> None:
        self.builder, self.vector = builder, vector

    def run(
        self, m0: Any, m1: Any, begun: list[list[Any]], step: Any, by: int = 1
    ) -> list[list[Any]]:
        """step(sums, stream, m) for m in range(m0, m1, by) and each stream of sums in `begun`."""
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
        updated = [step(sums[stream], stream, m) for stream in range(len(begun))]
        m.add_incoming(builder.add(m, m_type(by)), body)
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


class _Tile(NamedTuple):
    """A tile of `height` rows of C and `panels` panels of packed weights.

    C = (S + A1 W1) + A2 W2, each element two sums over the halves of k in order: a tile of one row
    would else wait for the latency of the FMA.  Every tile adds in this order, so that the bits of
    an element do not depend on the tile it falls into; in a "long" one the second half comes after
    the first, as where there are many rows, in a "long back" one before it.
    A "first" one has the first of these sums alone, C = S + A W, a "second" one C = S + (A W), and
    a "transposed" one C = S + (A' W).
    A, W, S and C are `rows`: A (height,K), or (K,height) if transposed; W (panels,K,width) with
    the panels at its stride; S and C (height, panels·width), S with stride 0 being one vector for
    all rows.  Of `ahead`, `rows` too, a tile of many rows fetches K into L2, a line of each: what
    is needed next from further away; a transposed one a line at each k that SPREAD divides, a
    "fetching" one of few rows and several panels in each turn of its loop of _UNROLLED k, none
    where that is 1.  One of many rows and of at least _BELOW_FROM k fetches the S of the tile below
    it, too, a "second" or transposed one its own.
    A "half" one, of one row, is one of the two sums alone: C = (S + A W) + ahead, S, C and ahead
    (panels, width) with the panels at their strides.
    """

    height: int
    panels: int
    vectors: int
    kind: str

    def function(self, module: Any, place: Any) -> Any:
        """A function of K and the parts of A, W, S, C and ahead: LLVM sees this tile alone.

        With all heights in one function, and a loop over tiles around each, it makes so many
        addresses beforehand that they go to the stack and back: a product of nine rows and 64 by 64
        weights took 3 % longer.
        """
        element, i64 = vector_of(place)[0].element, ir.IntType(64)
        name = f"fastbptt.tile.{self.height}.{self.panels}.{self.vectors}.{self.kind}.{element}"
        if name in module.globals:
            return module.globals[name]
        parts = [element.as_pointer(), i64] * 5
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [i64, *parts]), name)
        function.linkage = "linkonce_odr"
        for attribute in ("noinline", "nounwind"):
            function.attributes.add(attribute)
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        K, *parts = function.args
        places = [_Place(*parts[i : i + 2]) for i in range(0, len(parts), 2)]
        self.emit(builder, place, K, places)
        builder.ret_void()
        return function

    def emit(self, builder: Any, place: Any, K: Any, places: list[_Place]) -> None:
        """The code of one tile: A, W, S, C and ahead, and the Numba type of such a place."""
        A, W, S, C, ahead = places
        height, across = self.height, range(self.panels * self.vectors)
        at_each_k = self.panels == 1 and height * self.vectors > TOGETHER
        # as a rule a step holds its weights; where they and the accumulators do not fit, its
        # elements of A: three rows and two panels spilled with 16 registers, and took three times
        # as long
        by_weight = (height + 1) * len(across) >= REGISTERS
        transposed, half = self.kind == "transposed", self.kind == "half"
        i32, i64 = ir.IntType(32), ir.IntType(64)
        vector, size = vector_of(place)
        width = vector.count
        undefined = ir.Constant(vector, ir.Undefined)
        zeros = [ir.Constant(vector, [0.0] * width)] * (height * len(across))
        multiply_add = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(vector, [vector] * 3),
            f"llvm.fmuladd.v{width}f{8 * size}",
        )
        loop = _Loop(builder, vector)

        def mask(lanes):
            return ir.Constant(ir.VectorType(i32, width), lanes)

        def registers(rows):
            count, each = (self.panels, range(self.vectors)) if half else (height, across)
            return [
                register_at(builder, rows.row(builder, i64(r)), v, vector)
                for r in range(count)
                for v in each
            ]

        def loaded(pointer):
            return builder.load(pointer, align=size, typ=vector)

        def weight(k, v):
            panel = W.row(builder, i64(v // self.vectors))
            start = builder.gep(panel, [builder.mul(k, i64(self.vectors * width))])
            return loaded(register_at(builder, start, v % self.vectors, vector))

        def everywhere_in_a_register(k, r):
            source = builder.gep(sources[r], [builder.mul(k, A.stride) if transposed else k])
            element = builder.load(source, typ=vector.element)
            one = builder.insert_element(undefined, element, i32(0))
            return builder.shuffle_vector(one, undefined, mask([0] * width))

        def group_of_steps(sums, stream, m):
            k = builder.add(m, firsts[stream])
            few = ir.VectorType(vector.element, _GROUP)
            source = builder.bitcast(builder.gep(sources[0], [k]), few.as_pointer())
            group = builder.load(source, align=size, typ=few)
            repeated = mask([j % _GROUP for j in range(width)])
            group = builder.shuffle_vector(group, ir.Constant(few, ir.Undefined), repeated)
            # else LLVM makes four loads of it again
            group = of_unknown_origin(builder, group, "v")
            for i in range(_GROUP):
                spread = mask([j - j % _GROUP + i for j in range(width)])
                one, at = builder.shuffle_vector(group, undefined, spread), builder.add(k, i64(i))
                sums = [builder.call(multiply_add, [one, weight(at, v), sums[v]]) for v in across]
            return sums

        def fetch(k):
            if not transposed:
                prefetch(builder, ahead.row(builder, k), TO_L2)
            if WEIGHTS_AHEAD:
                later = builder.mul(builder.add(k, i64(_SOON)), i64(self.vectors * width))
                for v in range(self.vectors):
                    start = builder.gep(W.pointer, [later])
                    prefetch(builder, register_at(builder, start, v, vector), TO_L1)

        def one_step(sums, stream, m):
            k = builder.add(m, firsts[stream])
            if not by_weight:
                weights = [weight(k, v) for v in across]
            if at_each_k:
                fetch(k)
            if by_weight:
                elements = [everywhere_in_a_register(k, r) for r in range(height)]
            updated = list(sums)
            for i in range(len(sums)):
                if by_weight:
                    v, r = divmod(i, height)
                    if r == 0:
                        w = weight(k, v)
                    one = elements[r]
                else:
                    r, v = divmod(i, len(across))
                    if v == 0:
                        one = everywhere_in_a_register(k, r)
                    w = weights[v]
                at = r * len(across) + v
                updated[at] = builder.call(multiply_add, [one, w, sums[at]])
            return updated

        by = SPREAD if transposed else _UNROLLED

        def some_steps(sums, stream, m):
            if self.kind in ("fetching", "transposed"):
                prefetch(builder, ahead.row(builder, builder.add(m, firsts[stream])), TO_L2)
            for i in range(by):
                sums = one_step(sums, stream, builder.add(m, i64(i)))
            return sums

        def one_stream(count, sums):
            single = none
            if half and _GROUP > 1:
                single = builder.and_(count, i64(-_GROUP))
                (sums,) = loop.run(none, single, [sums], group_of_steps, _GROUP)
            elif transposed or (_UNROLLED > 1 and height > 1 and self.panels > 1):
                single = builder.and_(count, i64(-by))
                (sums,) = loop.run(none, single, [sums], some_steps, by)
            (sums,) = loop.run(single, count, [sums], one_step)
            return sums

        none = i64(0)
        if transposed:
            sources = [builder.gep(A.pointer, [i64(r)]) for r in range(height)]
        else:
            # Else LLVM makes the rows' pointers from one another, at every step of k, on the ports
            # that the FMAs need: up to a tenth slower.
            starts = [A.row(builder, i64(r)) for r in range(height)]
            sources = [of_unknown_origin(builder, start, "r") for start in starts]
        if self.kind in ("second", "transposed"):
            firsts = [none]
            for pointer in registers(S):  # long before they are added to
                prefetch(builder, pointer, TO_L1)
            total = one_stream(K, zeros)
            other = [loaded(pointer) for pointer in registers(S)]
        else:
            less = builder.lshr(K, i64(1))
            more = builder.sub(K, less)
            firsts = [none, more]
            start = [loaded(pointer) for pointer in registers(S)]
            if at_each_k:
                with builder.if_then(builder.icmp_signed(">=", K, i64(_BELOW_FROM))):
                    for r in range(height, 2 * height):
                        for v in range(0, self.vectors, _LINE):
                            below = register_at(builder, S.row(builder, i64(r)), v, vector)
                            prefetch(builder, below, TO_L1)
            if self.kind == "first":
                firsts = [none]
                total, other = one_stream(K, start), None
            elif half:
                firsts = [none]
                total = one_stream(K, start)
                other = [loaded(pointer) for pointer in registers(ahead)]
            elif "long" not in self.kind and height * len(across) <= TOGETHER:
                begun, single = [start, zeros], none
                if height == 1 and _GROUP > 1:
                    single = builder.and_(less, i64(-_GROUP))
                    begun = loop.run(none, single, begun, group_of_steps, _GROUP)
                total, other = loop.run(single, less, begun, one_step)
                total = loop.once(builder.icmp_signed("<", less, more), total, one_step, less)
            elif self.kind == "long back":
                firsts = [more]
                other = one_stream(less, zeros)
                firsts = [none]
                total = one_stream(more, start)
            else:
                total = one_stream(more, start)
                firsts = [more]
                other = one_stream(less, zeros)
        if other is not None:
            pairs = zip(total, other, strict=True)
            total = [builder.fadd(one, two) for one, two in pairs]
        for pointer, one in zip(registers(C), total, strict=True):
            builder.store(one, pointer).align = size


def tile(height: int, panels: int, vectors: int = VECTORS, kind: str = "") -> Any:
    """A kernel for one tile."""

    @intrinsic
    def kernel(typingctx, A, W, K, S, C, ahead):
        def codegen(context, builder, sig, args):
            places = [_Place(*cgutils.unpack_tuple(builder, args[i])) for i in (0, 1, 3, 4, 5)]
            _Tile(height, panels, vectors, kind).emit(builder, W, args[2], places)
            return context.get_dummy_value()

        return types.void(A, W, types.intp, S, C, ahead), codegen

    return kernel


def tiles(tallest: int, vectors: int = VECTORS, kind: str = "") -> Any:
    """A kernel for `count` tiles of one panel each, all of a `height` up to the tallest.

    They lie below one another and read the same weights; transposed ones lie side by side, read the
    same A, and the next one's weights at W's stride.
    """

    @intrinsic
    def kernel(typingctx, height, count, A, W, K, S, C, ahead):
        sig = types.void(types.intp, types.intp, A, W, types.intp, S, C, ahead)

        def codegen(context, builder, sig, args):
            i64, (height, count, K) = ir.IntType(64), (args[i] for i in (0, 1, 4))
            places = [_Place(*cgutils.unpack_tuple(builder, args[i])) for i in (2, 3, 5, 6, 7)]
            with cgutils.for_range(builder, count) as loop:
                if kind == "transposed":
                    panel = i64(vectors * vector_of(W)[0].count)
                    apart = [i64(0), places[1].stride, panel, panel]
                else:
                    of_A, of_S, of_C = (builder.mul(height, places[y].stride) for y in (0, 2, 3))
                    apart = [of_A, i64(0), of_S, of_C]
                apart.append(builder.mul(K, places[4].stride))
                here = [
                    place.moved(builder, builder.mul(loop.index, distance))
                    for place, distance in zip(places, apart, strict=True)
                ]
                done = builder.append_basic_block("done")
                choice = builder.switch(height, done)
                for h in range(1, tallest + 1):
                    block = builder.append_basic_block(f"height{h}")
                    choice.add_case(i64(h), block)
                    builder.position_at_end(block)
                    own = _Tile(h, 1, vectors, kind).function(builder.module, W)
                    builder.call(own, [K, *(part for place in here for part in place)])
                    builder.branch(done)
                builder.position_at_end(done)
            return context.get_dummy_value()

        return sig, codegen

    return kernel
