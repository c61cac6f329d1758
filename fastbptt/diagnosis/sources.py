"""Sequences to diagnose on: text as one-hot characters, arrays, sound."""

import pathlib
import wave
from typing import Any

import numpy as np

from .. import checks, files


class OneHot:
    """A sequence of classes as one-hot rows that are made when sliced: never held whole.

    Parameters
    ----------
    codes : ndarray of int (T,)
        In range(classes).
    classes : int
        I.
    dtype : float32 or float64
        Of the rows.

    Raises
    ------
    TypeError, ValueError
        For codes that are not integers, or out of range.

    Examples
    --------
    >>> from fastbptt.diagnosis import OneHot
    >>> OneHot([2, 0], 3)[0:1]
    array([[0., 0., 1.]], dtype=float32)
    """

    def __init__(self, codes: Any, classes: int, dtype: Any = np.float32) -> None:
        self.codes = np.asarray(codes)
        self.dtype = checks.dtype(dtype)
        self.shape = (self.codes.size, checks.size(classes, "classes"))
        if self.codes.ndim != 1 or self.codes.dtype.kind not in "iu":
            raise TypeError(
                f"codes: expected integers (T,), got {self.codes.dtype} {self.codes.shape}"
            )
        if self.codes.size and not (0 <= self.codes.min() <= self.codes.max() < classes):
            raise ValueError(f"codes: expected all in range({classes})")

    def __getitem__(self, steps: slice) -> np.ndarray:
        codes = self.codes[steps]
        rows = np.zeros((codes.size, self.shape[1]), self.dtype)
        rows[np.arange(codes.size), codes] = 1
        return rows


def text(characters: str, dtype: Any) -> OneHot:
    """One-hot characters over the sorted set of those that occur."""
    if not characters:
        raise ValueError("the text is empty")
    points = np.frombuffer(characters.encode("utf-32-le"), np.uint32)
    alphabet, codes = np.unique(points, return_inverse=True)
    return OneHot(codes, alphabet.size, dtype)


def language_reference() -> str:
    """CPython's own language reference, which every CPython ships."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def _sound(path: pathlib.Path, dtype: Any) -> np.ndarray:
    """PCM samples (T, channels) in [-1, 1]."""
    with wave.open(str(path), "rb") as file:
        width, channels = file.getsampwidth(), file.getnchannels()
        raw = np.frombuffer(file.readframes(file.getnframes()), np.uint8)
    raw = raw[: raw.size // (width * channels) * width * channels]
    if width == 1:  # unsigned, alone among the widths
        samples = raw.astype(np.float64) - 128
    else:
        wide = np.zeros((raw.size // width, 4), np.uint8)
        wide[:, 4 - width :] = raw.reshape(-1, width)
        samples = wide.view("<i4")[:, 0] / 2.0 ** (32 - 8 * width)
    return (samples / 2.0 ** (8 * width - 1)).reshape(-1, channels).astype(dtype)


def _array(path: pathlib.Path, dtype: Any) -> np.ndarray:
    with open(path, "rb") as file:  # NumPy leaves it open where it is no archive but begins as one
        y = np.load(file, allow_pickle=False)
    if not isinstance(y, np.ndarray):
        raise ValueError("expected one array (T, I), got an archive of several")
    if y.dtype.kind not in "fiu":
        raise ValueError(f"expected real numbers, got {y.dtype}")
    if y.ndim not in (2, 3) or 0 in y.shape:
        raise ValueError(f"expected shape (T, I), got {y.shape}")
    with np.errstate(over="ignore"):
        cast = y.astype(dtype)
    beyond = y[np.isfinite(y) & ~np.isfinite(cast)]
    if beyond.size:
        raise ValueError(f"holds {beyond[0]}, which is beyond {cast.dtype}; read it as float64")
    return cast


def read(path: Any, dtype: Any) -> OneHot | np.ndarray:
    """The sequence in a file: `.npy` (T,I), `.wav`, or else UTF-8 text.

    Raises
    ------
    ValueError
        Naming the file, if it cannot be read as what its name says.
    """
    path = pathlib.Path(path)
    try:
        if path.suffix.lower() == ".npy":
            return _array(path, dtype)
        if path.suffix.lower() == ".wav":
            return _sound(path, dtype)
        return text(path.read_text(encoding="utf-8"), dtype)
    except (OSError, wave.Error, *files.BROKEN) as error:
        raise ValueError(f"{path}: {files.reason(error)}") from None
