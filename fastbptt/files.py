"""Archives of arrays: written whole or not at all, read without pickle."""

import contextlib
import io
import json
import os
import pathlib
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

_ABOUT = "fastbptt"  # the name of what is said about the arrays
# What NumPy raises for a file that is cut short, of another kind, or in need of pickle;
# RuntimeError for an encrypted archive and, as NotImplementedError, an unknown compression.
BROKEN = (
    AttributeError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    RuntimeError,
    zlib.error,
    zipfile.BadZipFile,
    tokenize.TokenError,
)


@contextlib.contextmanager
def replacing(path: Any) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once it is whole."""
    # of this thread alone: others may write to the same path
    temporary = f"{os.fspath(path)}.{os.getpid()}.{threading.get_ident()}.tmp"
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
    except BROKEN as error:
        raise ValueError(f"{os.fspath(path)}: not {what} ({reason(error)})") from None


def reason(error: Exception) -> str:
    """What is wrong with a file, without its name and without NumPy's advice to allow pickle."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "allow_pickle" in str(error):
        return "no array of numbers; nothing is unpickled"
    return str(error) or "cut short"  # EOFError says nothing


def write_arrays(path: Any, arrays: Mapping[str, np.ndarray], about: dict[str, Any]) -> None:
    """Arrays, and what is to be said about them, in an .npz or .safetensors."""
    suffix = _suffix(path)
    if suffix == ".npz":
        # First: damage to an archive's directory can hide an entry behind the one before it.
        write_npz(path, {_ABOUT: np.array(json.dumps(about)), **arrays})
    else:
        raw = _safetensors().numpy.save(dict(arrays), {_ABOUT: json.dumps(about)})
        with replacing(path) as file:
            file.write(raw)


def read_arrays(path: Any, what: str) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """What `write_arrays` wrote, or anybody's arrays with None."""
    suffix = _suffix(path)
    if suffix == ".npz":
        arrays = read_npz(path, what)
        said = arrays.pop(_ABOUT, None)
    else:
        library = _safetensors()
        with open(path, "rb"), reading(path, what):
            try:
                with library.safe_open(path, framework="np") as file:
                    arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                    said = (file.metadata() or {}).get(_ABOUT)
            except library.SafetensorError as error:
                raise ValueError(str(error)) from None
    with reading(path, what):
        return arrays, None if said is None else dict(json.loads(str(said)))


def _suffix(path: Any) -> str:
    try:
        suffix = pathlib.Path(path).suffix
    except TypeError:
        raise TypeError(f"path: expected a str or path-like, got {type(path).__name__}") from None
    if suffix not in (".npz", ".safetensors"):
        raise ValueError(f"path: expected a name in .npz or .safetensors, got {os.fspath(path)!r}")
    return suffix


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            "safetensors: this package reads and writes .safetensors; install fastbptt[safetensors]"
        ) from None
    return safetensors


def read_npz(path: Any, what: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz; FileNotFoundError if there is none, ValueError if it is broken."""
    with open(path, "rb") as file:
        whole = io.BytesIO(file.read())  # what goes wrong from here on is not the disk
    with reading(path, what):
        if not zipfile.is_zipfile(whole):
            raise ValueError("expected an .npz archive, got a file of another kind or cut short")
        whole.seek(0)
        arrays = np.load(whole, allow_pickle=False)
        return {name: arrays[name] for name in arrays.files}
