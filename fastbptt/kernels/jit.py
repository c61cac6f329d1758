"""How every kernel is compiled, cached and dispatched: the only file that names Numba's options.

The flags (design.md D3, D5, D8): `contract` allows fused multiply-adds, `reassoc` and `nsz` let
loops vectorise; never `nnan` or `ninf`, because a NaN must stay a NaN.  `error_model="numpy"` keeps
divisions free of branches, `nogil` lets a thread pool run kernels side by side.  Elementary
functions are compiled `exact`: `reassoc` would merge the two halves of a range reduction.
Without `_nrt`, Numba's memory manager, no reference to an array is counted: atomically, at each
array that is handed on, sliced, put into a tuple or taken out of one, that took most of a step of a
chain of 64 units.  Such a kernel cannot make arrays either, and Numba refuses one that tries.
`no_cfunc_wrapper`: no one calls a kernel from C, and a function for that would be compiled anew
with every kernel above it, as all code is.
"""

import functools
import hashlib
import pathlib
import pickle
import warnings
from collections.abc import Callable
from typing import Any

from numba import njit, typeof, types
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.extending import overload

_FLAGS: dict[str, Any] = {
    "fastmath": {"contract", "reassoc", "nsz"},
    "error_model": "numpy",
    "nogil": True,
    "_nrt": False,
    "no_cfunc_wrapper": True,
}
_EXACT_FLAGS: dict[str, Any] = {**_FLAGS, "fastmath": {"contract"}}


@functools.cache
def source_stamp() -> str:
    """A hash of every source file of the package: Numba itself would look at one file only."""
    package = pathlib.Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _warn_uncached() -> None:
    warnings.warn(
        "fastbptt compiles anew in every process: no cache folder can be read and written; set "
        "NUMBA_CACHE_DIR to a folder of your own",
        RuntimeWarning,
        stacklevel=2,
    )


class _StampedCache(FunctionCache):
    """Numba's disk cache, made stale by a change to any file of the package (design.md D7)."""

    def __init__(self, py_func: Callable[..., Any], stamp: str) -> None:
        super().__init__(py_func)
        self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base, stamp)


class _PackageCache:
    """The disk cache of one kernel, opened by its first call.

    Numba tries a folder by writing to it: opened at once, all kernels' caches took a tenth of
    `import fastbptt`.
    """

    def __init__(self, py_func: Callable[..., Any]) -> None:
        self._py_func = py_func
        self._stamp = source_stamp()  # of what is imported now, whatever is edited before the call

    @functools.cached_property
    def _opened(self) -> FunctionCache | NullCache:
        try:
            return _StampedCache(self._py_func, self._stamp)
        except RuntimeError:  # no locator found a folder it may write to
            _warn_uncached()
            return NullCache()

    @property
    def cache_path(self) -> str | None:
        return self._opened.cache_path

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return self._opened.load_overload(sig, target_context)
        except OSError:  # the folder was there when it was opened and is not any more
            _warn_uncached()
        except (EOFError, pickle.UnpicklingError):  # a file cut short: begin the cache anew
            self._opened.flush()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            self._opened.save_overload(sig, data)
        except OSError:  # or the disk is full
            _warn_uncached()


class _PartLibrary(JITCodeLibrary):
    """The code of a kernel that is a part of others only: not optimised as a whole, nor compiled.

    Numba does both for every kernel with all that it calls, and once more in each kernel above.
    """

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        return 0

    @property
    def codegen(self) -> Any:
        return self

    def set_env(self, name: str, env: Any) -> None:
        """Objects of Python that compiled code needs: a kernel has none."""


class _PartCompiler(Compiler):
    """The compiler that Numba asks for each signature, with such a library."""

    def _compile_core(self) -> Any:
        state = self.state
        state.library = _PartLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        return super()._compile_core()


class _Part:
    """A kernel that is a part of others only, which Numba first hears of when one is compiled.

    To Numba it is the dispatcher that is made then: with all of them made at once, or again where
    the kernels' code is in the cache, `import fastbptt` took a fifth longer.
    """

    __wrapped__: Callable[..., Any]

    def __init__(self, func: Callable[..., Any], flags: dict[str, Any]) -> None:
        functools.update_wrapper(self, func)
        self._flags = {**flags, "pipeline_class": _PartCompiler, "no_cpython_wrapper": True}

    def __call__(self, *args: Any, **kws: Any) -> None:
        name = self.__wrapped__.__name__
        raise TypeError(f"{name} is a part of other kernels and has no code of its own to call")

    def __reduce__(self) -> str:
        """Where it is found: pickles name it, as they name functions."""
        return self.__wrapped__.__qualname__

    @functools.cached_property
    def _dispatcher(self) -> Any:
        """Made under the lock of Numba's compiler, and so once."""
        dispatcher = _numbas(self.__wrapped__, self._flags, NullCache())
        # what Python may call: nothing
        dispatcher._insert = lambda *args, **kws: None
        dispatcher._compile_for_args = self.__call__
        return dispatcher

    @property
    def _numba_type_(self) -> Any:
        return self._dispatcher._numba_type_


def _numbas(func: Callable[..., Any], flags: dict[str, Any], cache: Any) -> Any:
    """Numba's dispatcher of a function, which sees an integer where a call has a constant."""
    dispatcher = njit(**flags)(func)
    dispatcher._cache = cache
    template = dispatcher.get_call_template
    dispatcher.get_call_template = lambda args, kws: template(
        [types.unliteral(arg) for arg in args],
        {name: types.unliteral(arg) for name, arg in kws.items()},
    )
    return dispatcher


def kernel(
    func: Callable[..., Any] | None = None,
    *,
    exact: bool = False,
    inlined: bool = False,
    allocates: bool = False,
    part: bool = False,
) -> Any:
    """Compile `func` on its first call; `exact` keeps the written order of every sum.

    Those that make arrays for themselves say so (`allocates`), and leave loops to others.
    `inlined` kernels become part of whoever calls them.  A `part` is called by other kernels only,
    and compiled and cached as theirs: half of a cold start went to code that no one calls.  Who is
    called by kernels is one or the other: of a kernel with code of its own those above it have a
    second copy, in which LLVM may add up in another order, and which of the two they run depends on
    what this process has compiled and what it has read from the cache.
    A 0 in a call is an integer like any other: Numba would compile the kernel once more for it,
    which took a seventh of a cold start.
    """
    if func is None:
        return functools.partial(
            kernel, exact=exact, inlined=inlined, allocates=allocates, part=part
        )
    flags = {**(_EXACT_FLAGS if exact else _FLAGS), "forceinline": inlined, "_nrt": allocates}
    return _Part(func, flags) if part else _numbas(func, flags, _PackageCache(func))


class Entry:
    """A kernel, called with arguments of the same types again and again.

    To find out the types of arrays in tuples and to choose by them takes Numba 2 us of a forward
    call and 4 of one of BPTT, several steps of 64 units: here it does so in the first `call` alone.
    Who has an entry vouches for the types, as nobody looks at them any more; whether an array may
    be written makes no difference to compiled code.
    """

    __slots__ = ("_kernel", "call")
    call: Callable[..., None]

    def __init__(self, kernel: Any) -> None:
        self._kernel, self.call = kernel, self._first

    def _first(self, *args: Any) -> None:
        self.call = self._kernel.compile(tuple(typeof(arg) for arg in args))
        self.call(*args)


_implementations: dict[Callable[..., Any], dict[Any, Callable[..., Any]]] = {}


def implements(
    stub: Callable[..., Any], tag: Any, *, exact: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The decorated function is what `stub` means where its first argument is a `tag`.

    `tag` is a NamedTuple class or a Numba type such as `numba.float32`, None for what every other
    type gets; kernels call `stub` and Numba picks by type while it compiles.  All implementations
    of one stub share `exact`.
    """

    def register(implementation: Callable[..., Any]) -> Callable[..., Any]:
        if stub not in _implementations:
            table = _implementations[stub] = {}
            # strict=False: Numba would compare the argument names of the chooser and of the chosen
            # A call would hand over every field of every tuple: a tenth of a step of 64 units.
            options = {**(_EXACT_FLAGS if exact else _FLAGS), "forceinline": True}
            overload(stub, jit_options=options, strict=False)(
                lambda *args: table.get(
                    getattr(args[0], "instance_class", args[0]), table.get(None)
                )
            )
        _implementations[stub][tag] = implementation
        return implementation

    return register


def cache_folder(dispatcher: Any) -> str | None:
    """The folder with a kernel's compiled code, or None where none can be written."""
    return dispatcher._cache.cache_path
