"""The command line: stdout for the report, stderr for the log, exit code 2 for a user's mistake."""

import argparse
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

_NAME = "fastbptt"


class _Parser(argparse.ArgumentParser):
    """One line for an error, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{_NAME}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=f"python -m {_NAME}", description="Does the gradient vanish or explode?")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    diagnose = commands.add_parser(
        "diagnose", help="read a sequence through a net and say what becomes of its gradient"
    )
    norms = commands.add_parser(
        "norms", help="norms of Jacobian products, of all and by lag, as intervals, and exponents"
    )
    norms.add_argument(
        "--jacobians", metavar="FILE.npy", help="(T, N, N), the first to be applied first; no net"
    )
    _net_options(diagnose.add_argument, 100_000)
    _net_options(norms.add_argument, 2000)
    commands.add_parser("info", help="versions, processor, lanes, threads, cache folder")
    commands.add_parser("warmup", help="compile now what passes and streams need")
    return parser


# What says which net reads what: --jacobians stands in their place.
_OF_A_NET = (
    "input", "cell", "nonlinearity", "hidden", "layers", "gain", "weights", "prefix", "steps",
    "dtype",
)  # fmt: skip


def _net_options(add: Callable[..., Any], steps: int) -> None:
    """What says which net reads what, and how the result is printed."""
    add(
        "--input",
        metavar="FILE",
        help="text, .npy of (T, I), or .wav (Python's language reference)",
    )
    add("--cell", help="rnn, gru, lstm or mgu (rnn, or that of --weights)")
    add("--nonlinearity", help="of the rnn: tanh, relu or sigmoid (tanh)")
    add("--hidden", type=int, help="units (128)")
    add("--layers", type=int, help="layers (1)")
    add("--gain", type=float, help="spectral norm given to W_hh (as PyTorch initialises it)")
    add(
        "--weights",
        metavar="FILE",
        help=".npz or .safetensors: a state_dict under PyTorch's names, or from net.save",
    )
    add("--prefix", help="of the names in --weights, such as 'rnn.' for rnn.weight_hh_l0")
    add("--steps", type=int, help=f"steps to read ({steps}, or all of --input)")
    add("--probes", type=int, default=8, help="random vectors that ride along (%(default)s)")
    add("--delta", type=float, default=0.05, help="risk of the upper bound (%(default)s)")
    add("--seed", type=int, default=0, help="of weights, probes and readout (%(default)s)")
    add("--dtype", help="float32 or float64 (float32, or that of --weights)")
    add("--json", action="store_true", help="print one JSON object instead")
    add("--plot", metavar="FILE.png", help="write the pictures")


def _log(message: str) -> None:
    print(message, file=sys.stderr)


def _stored(args: argparse.Namespace) -> Any:
    """The net of --weights, without pickle."""
    import numpy as np

    from . import files, from_state_dict, load

    path, options, prefix = args.weights, {}, args.prefix or ""
    try:
        arrays, about = files.read_arrays(path, "weights")
        if about is None:  # not from net.save: its options are those of the command line
            gates = np.shape(arrays.get(f"{prefix}weight_hh_l0", ()))
            if len(gates) == 2 and gates[0] == gates[1] and args.nonlinearity is not None:
                options["nonlinearity"] = args.nonlinearity
            if args.dtype:
                arrays = {
                    n: y.astype(args.dtype) if y.dtype.kind in "fiu" else y
                    for n, y in arrays.items()
                }
            kind = args.cell and args.cell.upper()
            net = from_state_dict(arrays, kind, prefix=prefix, **options)
        elif prefix:
            raise ValueError(f"--prefix {prefix}: a file from net.save has none")
        else:
            net = load(path)
            if net.batch_first:  # here a sequence is read by chunks of time
                options = {name: getattr(net, name) for name in net.OPTIONS}
                net = from_state_dict(net.state_dict(), type(net).__name__, **options)
    except (OSError, TypeError, ValueError, ImportError, NotImplementedError) as error:
        reason = files.reason(error).removeprefix(f"{path}: ")
        raise ValueError(f"--weights {path}: {reason}") from None
    for option, given, has in (
        ("--hidden", args.hidden, net.hidden_size),
        ("--layers", args.layers, net.num_layers),
        ("--dtype", args.dtype, str(net.dtype)),
        ("--cell", args.cell, type(net).__name__.lower()),
        ("--nonlinearity", args.nonlinearity, getattr(net, "nonlinearity", "none")),
    ):
        if given not in (None, has):
            raise ValueError(f"{option} {given}: --weights has {has}")
    if net.bidirectional:
        raise ValueError(
            f"--weights {path}: expected a net of one direction, got {net}: the states of two are "
            "no chain"
        )
    for name, y in net.state_dict().items():
        odd = y[~np.isfinite(y)]
        if odd.size:
            raise ValueError(
                f"--weights {path}: {name} holds {odd[0]}, expected finite numbers; did its "
                "training diverge?"
            )
    return net


def _network(args: argparse.Namespace, I: int, net: Any) -> Any:
    """The net to diagnose, for inputs of I features."""
    import numpy as np

    from . import checks, networks

    if net is None:
        hidden = checks.size(128 if args.hidden is None else args.hidden, "--hidden")
        layers = checks.size(1 if args.layers is None else args.layers, "--layers")
        kinds = {kind.lower(): kind for kind in networks.NETWORKS}
        kind = networks.NETWORKS[kinds[checks.choice(args.cell or "rnn", "--cell", kinds)]]
        options = {}
        if args.nonlinearity is not None:
            if kind is not networks.RNN:
                raise ValueError(
                    f"--nonlinearity {args.nonlinearity}: only an rnn has one, got {args.cell}"
                )
            options["nonlinearity"] = args.nonlinearity
        dtype = args.dtype or "float32"
        try:
            net = kind(I, hidden, layers, dtype=dtype, rng=args.seed, **options)
        except MemoryError as error:
            reason = str(error).partition(": ")[2]
            raise MemoryError(f"--hidden {hidden}: {reason}") from None
    elif net.input_size != I:
        raise ValueError(
            f"--weights {args.weights}: weight_ih_l0 has shape {net.weight_ih_l0.shape}, but the "
            f"input has {I} features"
        )
    if args.gain is not None:
        state = net.state_dict()
        for name in [name for name in state if name.startswith("weight_hh")]:
            norm = np.linalg.norm(state[name].astype(np.float64), 2)
            if not (0 < args.gain < np.inf) or norm == 0:
                raise ValueError(f"--gain: expected a finite number above 0, got {args.gain}")
            state[name] = (state[name] * (args.gain / norm)).astype(net.dtype)
        net.load_state_dict(state)
    return net


def _sequence(args: argparse.Namespace, dtype: Any) -> Any:
    """What is to be read, of the steps asked for."""
    import numpy as np

    from . import checks, files
    from .diagnosis import sources

    steps = None if args.steps is None else checks.size(args.steps, "--steps", least=2)
    if args.input is None:
        x: Any = sources.text(sources.language_reference(), dtype)
        _log(f"reading the language reference of Python {platform.python_version()}")
        steps = steps or 100_000
    else:
        try:
            x = sources.read(args.input, dtype)
        except ValueError as error:
            reason = files.reason(error).removeprefix(f"{pathlib.Path(args.input)}: ")
            raise ValueError(f"--input {args.input}: {reason}") from None
    have = x.shape[0]
    if isinstance(x, sources.OneHot):
        if steps and steps > have:
            _log(f"the text has {have:,} characters: it is read again from its beginning")
        return sources.OneHot(np.resize(x.codes, steps or have), x.shape[1], dtype)
    if steps and steps > have:
        raise ValueError(f"--steps {steps}: {args.input} has {have}")
    return x[:steps]


def _bar(quiet: bool) -> tuple[Callable[[int, int], None] | None, Callable[[], None]]:
    """A progress bar on a terminal, where tqdm is installed, and how to end it."""
    if quiet or not sys.stderr.isatty():
        return None, lambda: None
    try:
        from tqdm import tqdm
    except ImportError:
        return None, lambda: None
    bar = tqdm(unit=" steps", unit_scale=True, leave=False)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return show, bar.close


def _picture_path(path: str) -> None:
    """Refuse now what could only fail after the work."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise ValueError("--plot: needs matplotlib: pip install 'fastbptt[plot]'") from None
    known = FigureCanvasAgg.get_supported_filetypes()
    ending = os.path.splitext(path)[1][1:].lower()
    if ending not in known:
        raise ValueError(f"--plot {path}: expected a name that ends in .png, .svg or .pdf")
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ValueError(f"--plot {path}: cannot be written there")


def _write_picture(report: Any, path: str) -> None:
    """Whole or not at all."""
    stem, ending = os.path.splitext(path)
    temporary = f"{stem}.{os.getpid()}{ending}"
    try:
        axes = report.plot()
        figure = axes.figure if hasattr(axes, "figure") else axes[0].figure
        figure.savefig(temporary, dpi=150)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    _log(f"wrote {path}")


def _print(report: Any, args: argparse.Namespace) -> None:
    if args.plot is not None:
        _write_picture(report, args.plot)
    print(report.to_json() if args.json else report)


def _check_numbers(args: argparse.Namespace) -> None:
    """Refuse numbers of the options under the options' names."""
    from . import checks

    checks.size(args.probes, "--probes")
    checks.probability(args.delta, "--delta")
    checks.size(args.seed, "--seed", least=0)


def _check_finite(y: Any, what: str) -> None:
    """Refuse NaN and Inf in y (T,...), of which a part is read after the other."""
    import numpy as np

    for t0 in range(0, len(y), 1024):
        part = y[t0 : t0 + 1024]
        bad = np.argwhere(~np.isfinite(part))
        if bad.size:
            value = part[tuple(bad[0])]
            raise ValueError(
                f"{what}: expected finite numbers, got {value} at step {t0 + bad[0][0]}"
            )


def _net_and_sequence(args: argparse.Namespace) -> tuple[Any, Any]:
    """The net, and what it is to read."""
    from . import checks

    if args.dtype is not None:
        checks.dtype(args.dtype)
    if args.cell is not None:
        args.cell = args.cell.lower()
    if args.prefix is not None and args.weights is None:
        raise ValueError(f"--prefix {args.prefix}: expected with --weights")
    if args.plot is not None:
        _picture_path(args.plot)
    stored = None if args.weights is None else _stored(args)
    x = _sequence(args, checks.dtype(args.dtype or getattr(stored, "dtype", "float32")))
    return _network(args, x.shape[-1], stored), x


def _diagnose(args: argparse.Namespace) -> None:
    from .diagnosis import diagnose

    _check_numbers(args)
    net, x = _net_and_sequence(args)
    progress, close = _bar(args.json)
    try:
        diagnosis = diagnose(
            net, x, probes=args.probes, delta=args.delta, rng=args.seed, progress=progress
        )
    finally:
        close()
    _print(diagnosis, args)


def _given_jacobians(args: argparse.Namespace) -> Any:
    """The chain of --jacobians."""
    import numpy as np

    from . import MatrixChain, files

    path = args.jacobians
    if args.plot is not None:
        _picture_path(args.plot)
    try:
        y: np.ndarray = np.lib.format.open_memmap(path, mode="r")
        if y.dtype.kind not in "fiu":
            raise ValueError("expected one array of real numbers")
        if y.ndim != 3 or y.shape[1] != y.shape[2]:
            raise ValueError(f"expected shape (T, N, N), square matrices, got {y.shape}")
        if str(y.dtype) not in ("float32", "float64"):
            y = y.astype(np.float64)
        chain = MatrixChain(y)
    except (OSError, *files.BROKEN) as error:
        reason = files.reason(error).removeprefix("J: ")
        raise ValueError(f"--jacobians {path}: {reason}") from None
    _check_finite(y, f"--jacobians {path}")
    return chain


def _norms(args: argparse.Namespace) -> None:
    from .diagnosis import norms_report
    from .diagnosis.report import check_state

    _check_numbers(args)
    if args.jacobians is not None:
        clash = [f"--{name}" for name in _OF_A_NET if getattr(args, name) is not None]
        if clash:
            raise ValueError(
                f"--jacobians: expected without {', '.join(clash)}, which say what net reads what"
            )
        chain, name = _given_jacobians(args), os.path.basename(args.jacobians)
    else:
        if args.steps is None and args.input is None:
            args.steps = 2000
        net, x = _net_and_sequence(args)
        y = x[: x.shape[0]]
        if y.ndim == 3:
            raise ValueError(f"--input {args.input}: expected shape (T, I), got {y.shape}")
        _check_finite(y, f"--input {args.input}")
        trace = net.trace(y)
        check_state(trace.output[:, None], 0)
        chain, name = trace.chain(), str(net)
    _print(norms_report(chain, name, args.probes, args.delta, args.seed), args)


def _info(args: argparse.Namespace) -> None:
    from . import __version__
    from .environment import info

    print(info(__version__))


def _warmup(args: argparse.Namespace) -> None:
    from .environment import warmup

    warmup(_log)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    try:
        args = _parser().parse_args(argv)
        {"diagnose": _diagnose, "norms": _norms, "info": _info, "warmup": _warmup}[args.command](
            args
        )
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough; nothing may be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OverflowError, MemoryError, OSError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        _log(f"{_NAME}: error: {message}")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
