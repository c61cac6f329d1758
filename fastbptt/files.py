"""Archives of arrays: written whole or not at all, read without pickle."""

import contextlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

# What NumPy raises for a file that is cut short, of another kind, or in need of pickle.
_BROKEN = (AttributeError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile)


@contextlib.contextmanager
def replacing(path: Any) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once it is whole."""
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def write_npz(path: Any, arrays: Mapping[str, Any]) -> None:
    """An .npz in the place of `path`, in one step."""
    with replacing(path) as file:
        np.savez(file, **arrays)


@contextlib.contextmanager
def reading(path: Any, what: str) -> Iterator[None]:
    """Whatever is wrong with the contents becomes a ValueError that names the file."""
    try:
        yield
    except _BROKEN as error:
        raise ValueError(f"{os.fspath(path)}: not {what} ({error})") from None


def read_npz(path: Any, what: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz; FileNotFoundError if there is none, ValueError if it is broken."""
    with open(path, "rb") as file, reading(path, what):
        arrays = np.load(file, allow_pickle=False)
        return {name: arrays[name] for name in arrays.files}
