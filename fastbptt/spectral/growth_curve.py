"""The norms of a stream at the ends of its chunks, in memory that has a bound."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import checks
from .factors import BlockNorms

_MOST = 4096  # points kept; when there are more, every second is dropped


class GrowthCurve:
    """Points (steps, norms), of the first update and every `stride`-th after it."""

    def __init__(self) -> None:
        self.points: list[tuple[int, BlockNorms]] = []
        self.stride, self.updates = 1, 0

    def note(self, steps: int, norms: Callable[[], BlockNorms]) -> None:
        """One more update has been, after which there are so many steps and norms()."""
        if self.updates % self.stride == 0:
            self.points.append((steps, norms()))
        self.updates += 1
        if len(self.points) > _MOST:
            del self.points[1::2]
            self.stride *= 2

    def steps(self) -> np.ndarray:
        """(C,)."""
        return np.array([t for t, _ in self.points], np.int64)

    def norms(self, B: int) -> BlockNorms:
        """(C,B) of each."""
        rows = ([norms[i] for _, norms in self.points] for i in range(len(BlockNorms._fields)))
        return BlockNorms(*(np.array(each).reshape(len(self.points), B) for each in rows))

    def arrays(self, B: int) -> dict[str, np.ndarray]:
        """The points, by names for a file."""
        return {"curve.steps": self.steps()} | {
            f"curve.{name}": y for name, y in self.norms(B)._asdict().items()
        }

    def restore(self, arrays: Mapping[str, Any], B: int) -> None:
        """The points of such `arrays`, which may be anything."""
        steps = arrays["curve.steps"].tolist()
        norms = [
            checks.shaped(arrays[f"curve.{name}"], "curve", np.dtype(float), (len(steps), B))
            for name in BlockNorms._fields
        ]
        self.points = [(t, BlockNorms(*each)) for t, *each in zip(steps, *norms, strict=True)]
