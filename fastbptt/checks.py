"""Every check of an argument and every error text: no kernel sees what was not checked here.

Each message names the argument, what was expected, what came and, where one helps, a hint.
"""

import operator
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def dtype(value: Any) -> np.dtype:
    """float32 or float64."""
    try:
        result = np.dtype(value)
    except TypeError:
        raise TypeError(f"dtype: expected float32 or float64, got {value!r}") from None
    if result not in DTYPES:
        raise TypeError(f"dtype: expected float32 or float64, got {result}")
    return result


def size(value: Any, name: str, least: int = 1) -> int:
    """A whole number of at least `least`."""
    try:
        result = operator.index(value)
    except TypeError:
        result = None
    if result is None or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if result < least:
        raise ValueError(f"{name}: expected at least {least}, got {result}")
    return result


def flag(value: Any, name: str) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def choice(value: Any, name: str, choices: Iterable[str]) -> str:
    """One of a few words."""
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    return value


def probability(value: Any, name: str) -> float:
    """A number strictly between 0 and 1."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None
    if not 0 < result < 1:
        raise ValueError(f"{name}: expected a number between 0 and 1, got {result}")
    return result


def number(value: Any, name: str, least: float) -> float:
    """A finite number of at least `least`."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None
    if not least <= result < float("inf"):
        raise ValueError(f"{name}: expected a finite number of at least {least}, got {result}")
    return result


def generator(rng: Any) -> np.random.Generator:
    """The Generator that `rng` is or seeds."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"rng: expected an int of at least 0, a numpy Generator or None, got {rng!r}"
        ) from None


def memory(needed: int, what: str) -> None:
    """Refuse what this machine cannot hold before it is drawn; needed in bytes."""
    try:
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return
    if needed > have:
        raise MemoryError(
            f"{what}: expected parameters of at most {have:,} bytes, this machine's memory, got "
            f"{needed:,}"
        )


def array(value: Any, name: str, expected: np.dtype) -> np.ndarray:
    """A float array of the dtype wanted: nothing is converted, so that nothing is lost unsaid."""
    if type(value) is np.ndarray and value.dtype == expected:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask; fill it first")
    try:
        result = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name}: expected an array of {expected}, got {type(value).__name__}: {error}"
        ) from None
    if result.dtype != expected:
        raise TypeError(
            f"{name}: expected {expected}, got {result.dtype}; {_unconverted(name, expected)}"
        )
    return result


def of_torch(y: Any, name: str) -> Any:
    """A torch tensor's memory as an array; anything else as it is."""
    if type(y) is np.ndarray:
        return y
    try:
        for method in ("detach", "cpu", "resolve_neg", "numpy"):
            y = getattr(y, method)() if hasattr(y, method) else y
    except (TypeError, RuntimeError) as error:  # bfloat16, device meta, conjugate or sparse
        raise TypeError(
            f"{name}: expected a dense tensor of float32 or float64, got {y.dtype}: {error}"
        ) from None
    return y


def _unconverted(name: str, expected: np.dtype) -> str:
    return (
        f"nothing is converted unasked: use np.asarray({name}, np.{expected}), or make the net of "
        "the other dtype"
    )


def _plain(value: Any, name: str, what: str) -> np.ndarray:
    """Any array at all; lists that are none raise."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: expected {what}, got {type(value).__name__}") from None


def settled(name: str, kind: str) -> AttributeError:
    """What assigning to an argument of a net's constructor raises."""
    return AttributeError(
        f"{name}: expected no assignment, as the net was made with it; make a new {kind}"
    )


def read_only(y: np.ndarray) -> np.ndarray:
    """A view that cannot be written through.

    Inputs reach the kernels as such, all of them: Numba would compile a kernel once for arrays that
    may be written and once more for those that may not.
    """
    if not y.flags.writeable:
        return y
    view = y.view()
    view.setflags(write=False)
    return view


def shaped(
    value: Any, name: str, expected: np.dtype, shape: tuple[int, ...], hint: str = ""
) -> np.ndarray:
    """An array of one shape."""
    result = array(value, name, expected)
    if result.shape != shape:
        raise ValueError(
            f"{name}: expected shape {shape}, got {result.shape}{hint and '; ' + hint}"
        )
    return result


def states(
    value: Any, name: str, pair: bool, expected: np.dtype, shape: tuple[int, ...]
) -> tuple[np.ndarray, ...] | None:
    """A state of one shape, or a pair (h, c) of them, as a tuple; None for None."""
    if value is None:
        return None
    if not pair:
        return (shaped(value, name, expected, shape),)
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name}: expected a tuple (h, c), got {type(value).__name__}")
    return tuple(shaped(part, f"{name}[{i}]", expected, shape) for i, part in enumerate(value))


def lengths(value: Any, T: int, B: int) -> np.ndarray:
    """Steps of each of B sequences, 0 .. T."""
    result = _plain(value, "lengths", "integers")
    if result.size == 0 and B == 0:
        return np.zeros(0, np.int64)
    if result.size and result.dtype.kind not in "iu":  # an empty list is of floats
        raise TypeError(f"lengths: expected integers, got {result.dtype}")
    if result.shape != (B,):
        raise ValueError(f"lengths: expected shape ({B},), one a sequence, got {result.shape}")
    if result.min() < 0 or result.max() > T:
        raise ValueError(
            f"lengths: expected all in 0 .. {T}, the steps of x, got {result.min()} .. "
            f"{result.max()}"
        )
    return result.astype(np.int64)


def mask(value: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of bools."""
    result = _plain(value, name, "bools")
    if result.dtype != bool:
        raise TypeError(f"{name}: expected bools, got {result.dtype}")
    if result.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {result.shape}")
    return result


def sequence(x: Any, name: str, expected: np.dtype, features: int, batch_first: bool) -> np.ndarray:
    """An input (T,B,I), (B,T,I) if `batch_first`, or (T,I) unbatched."""
    result = array(x, name, expected)
    ranked = result.ndim in (2, 3)
    if ranked and result.shape[-1] == features:
        return result
    wanted = f"(B, T, {features})" if batch_first else f"(T, B, {features})"
    hint = f"; is input_size {result.shape[-1]}?" if ranked else ""
    raise ValueError(
        f"{name}: expected {wanted} or unbatched (T, {features}), got {result.shape}{hint}"
    )


def parameters(
    mapping: Any, shapes: Mapping[str, tuple[int, ...]], expected: np.dtype
) -> dict[str, np.ndarray]:
    """A state dict; every key that is missing, unexpected, misshapen or of another dtype is named.

    A TypeError if dtypes are all that is wrong.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(f"state_dict: expected a mapping, got {type(mapping).__name__}")
    faults = []
    if mapping.keys() != shapes.keys():
        faults = [f"{name} is missing" for name in shapes if name not in mapping]
        faults += [f"{name} is unexpected" for name in mapping if name not in shapes]
    arrays: dict[str, np.ndarray] = {}
    mistyped = []
    for name, shape in shapes.items():
        if name not in mapping:
            continue
        value = arrays[name] = mapping[name]
        if type(value) is np.ndarray and value.dtype == expected and value.shape == shape:
            continue
        try:
            value = arrays[name] = array(of_torch(value, name), name, expected)
        except TypeError as error:
            mistyped.append(str(error).partition(";")[0])
        given = tuple(getattr(value, "shape", shape))
        if given != shape:
            turned = "; is it transposed?" if given[::-1] == shape else ""
            faults.append(f"{name} has shape {given}, expected {shape}{turned}")
    hint = [_unconverted("...", expected)] if mistyped else []
    if faults:
        raise ValueError("state_dict: " + "; ".join(faults + mistyped + hint))
    if mistyped:
        raise TypeError("state_dict: " + "; ".join(mistyped + hint))
    return arrays


def one_hot(shape: tuple[int, int], given: np.dtype, features: int, expected: np.dtype) -> None:
    """One-hot rows that fit a net."""
    if shape[1] != features:
        raise ValueError(f"x: expected {features} classes, as input_size, got {shape[1]}")
    if given != expected:
        raise TypeError(f"x: expected one-hot rows of {expected}, got {given}")
