"""What the element-wise loops of the cells read and write through, so that LLVM vectorises them."""

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic, models, overload, register_model

from .jit import kernel
from .simd import REGISTER_BYTES, elements


@intrinsic
def whole(typingctx, array, n):
    """n, which is a number of whole registers of `array`: loops up to it have no tail.

    The code of the tail, which never runs, would take the registers that the constants of an
    activation need, and a row of 64 units is but four turns of the loop: a tenth of a step.
    """

    def codegen(context, builder, sig, args):
        return builder.and_(args[1], ir.IntType(64)(-elements(sig.args[0].dtype)))

    return types.intp(array, types.intp), codegen


# Memory of different names never overlaps: the state, the slots of a, and the gradients of each;
# the factor of a frame, and work space.
REGIONS = (
    "h",
    "c",
    "dh",
    "dc",
    "dy",
    "step",
    "factors",
    "ax",
    "start",
    "R",
    "work",
    *(f"{a}{slot}" for a in ("a", "da") for slot in range(5)),
)


# What is read and written as a whole where cells know its parts by the names on the right.
_PARTS = {"state": ("h", "c")}


@kernel(part=True, inlined=True)
def clear(array, first, count, j0, j1):
    """0 in columns j0 .. j1-1 of some rows: those of padding, before more is made of them.

    0 · inf, of a number that overflows, is NaN there, and a sum over all columns would spread it.
    """
    for j in range(j0, j1):
        for r in range(first, first + count):
            array[r, j] = 0


class Line(types.Type):
    """Elements of one region, from a pointer on: what `line` makes, with line[j] to get and set."""

    def __init__(self, dtype: types.Type, region: str) -> None:
        self.dtype, self.region = dtype, region
        super().__init__(f"Line({dtype}, {region})")


@register_model(Line)
class _LineModel(models.PrimitiveModel):
    def __init__(self, manager: Any, line: Line) -> None:
        super().__init__(manager, line, manager.lookup(line.dtype).get_data_type().as_pointer())


@intrinsic(prefer_literal=True)
def line(typingctx, array, offset, region):
    """The elements of `array` from flat element `offset` on, which lie in `region`.

    Of a loop over many arrays LLVM would check every pair for overlap, and beyond eight pairs not
    vectorise at all: through lines it knows which cannot overlap.  On Intel's processors LLVM takes
    half of each register, lest the clock slow down: but the products slow it down anyway, and with
    whole ones a step of 64 units takes a sixth less.
    """
    if region.literal_value not in (*REGIONS, *_PARTS):
        raise TypingError(f"region: expected one of {', '.join((*REGIONS, *_PARTS))}")

    def codegen(context, builder, sig, args):
        # The function that this becomes a part of is told; llvmlite's own `add` knows no attribute
        # with a value.
        set.add(builder.function.attributes, f'"prefer-vector-width"="{8 * REGISTER_BYTES}"')
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.gep(data, [args[1]])

    return Line(array.dtype, region.literal_value)(array, types.intp, region), codegen


def _mark(builder: Any, instruction: Any, region: str) -> Any:
    """Tell LLVM that what `instruction` reads or writes lies in `region`, and in no other."""
    module, own = builder.module, _PARTS.get(region, (region,))
    domain = module.add_metadata(["fastbptt"])
    scopes = {name: module.add_metadata([f"fastbptt {name}", domain]) for name in REGIONS}
    own_scopes = [scopes.pop(name) for name in own]
    instruction.set_metadata("alias.scope", module.add_metadata(own_scopes))
    instruction.set_metadata("noalias", module.add_metadata(list(scopes.values())))
    return instruction


@intrinsic
def _get(typingctx, line, j):
    def codegen(context, builder, sig, args):
        pointer = builder.gep(args[0], [args[1]])
        return _mark(builder, builder.load(pointer), sig.args[0].region)

    return line.dtype(line, types.intp), codegen


@intrinsic
def _set(typingctx, line, j, value):
    def codegen(context, builder, sig, args):
        pointer = builder.gep(args[0], [args[1]])
        _mark(builder, builder.store(args[2], pointer), sig.args[0].region)
        return context.get_dummy_value()

    return types.void(line, types.intp, line.dtype), codegen


@overload(operator.getitem)
def _line_getitem(line, j):
    if isinstance(line, Line):
        return lambda line, j: _get(line, j)
    return None


@overload(operator.setitem)
def _line_setitem(line, j, value):
    if isinstance(line, Line):
        return lambda line, j, value: _set(line, j, value)
    return None
