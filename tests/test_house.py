"""The floors of the house, read from the imports, and what importing the package costs it."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "fastbptt"

# From the bottom up.  A module may import from its own floor's package and from the floors below.
FLOORS = [
    ["kernels.elementary", "kernels.jit", "kernels.memory", "kernels.simd", "kernels.team"],
    [
        "kernels.activations",
        "kernels.ahead",
        "kernels.dense",
        "kernels.lines",
        "kernels.panels",
        "kernels.slots",
        "kernels.tiles",
    ],
    ["kernels.cells"],
    [
        "kernels.chain",
        "kernels.frames",
        "kernels.gradients",
        "kernels.lanczos",
        "kernels.packing",
        "kernels.small",
        "kernels.stream",
        "kernels.sweeps",
    ],
    ["kernels.windows"],
    ["checks", "files", "matrix_norms", "openmp", "sequences", "threads", "weights"],
    ["teams"],
    ["layers"],
    ["chains"],
    ["trace_chain"],
    ["feedforward", "trace"],
    ["checkpoints"],
    ["network"],
    ["networks"],
    ["loading", "spectral"],
    ["bridges", "converters", "diagnosis", "environment"],
    ["cli", "__main__", "__init__"],
]
RUN_TIME = {"numpy", "numba", "llvmlite"}  # llvmlite is numba's own
OPTIONAL = {"matplotlib", "safetensors", "torch", "tqdm"}  # inside functions only


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        yield ".".join(parts), path


def floor_of(module):
    fits = [
        (len(prefix), floor)
        for floor, prefixes in enumerate(FLOORS)
        for prefix in prefixes
        if module == prefix or module.startswith(prefix + ".")
    ]
    return max(fits)[1] if fits else None


def imports(path, module):
    """(name, at top level) of each import, relative ones as names inside the package."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    if path == PACKAGE / "__init__.py":
        package = ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".") if package else []
                above = above[: len(above) - (node.level - 1)]
                base = ".".join([*above, *([base] if base else [])])
                for alias in node.names:
                    full = f"{base}.{alias.name}" if base else alias.name
                    known = {name for name, _ in modules()}
                    found = full if full in known else base or "__init__"
                    yield f"fastbptt.{found}", id(node) in top
            else:
                yield base, id(node) in top


@pytest.mark.parametrize(("module", "path"), list(modules()))
def test_imports_go_down_only(module, path):
    if module == "kernels":
        return  # the contract, no code
    here = floor_of(module)
    assert here is not None, f"{module} stands on no floor: give it one in FLOORS"
    for name, _ in imports(path, module):
        if name.startswith("fastbptt."):
            below = floor_of(name.removeprefix("fastbptt."))
            assert below is not None, f"{module} imports {name}, which stands on no floor"
            assert below <= here, f"{module} imports {name} from a floor above"


@pytest.mark.parametrize(("module", "path"), list(modules()))
def test_the_package_needs_numpy_and_numba_only(module, path):
    for name, at_top in imports(path, module):
        root = name.split(".")[0]
        if root not in RUN_TIME | {"fastbptt"} | sys.stdlib_module_names:
            assert root in OPTIONAL, f"{module} imports {name}"
            # whoever imports a bridge has its tool
            own = module == f"bridges.{root}" or module.startswith(f"bridges.{root}_")
            assert own or not at_top, f"{module} imports {name} at its top level"


def test_numba_options_are_named_in_one_file():
    for module, path in modules():
        if module != "kernels.jit":
            text = path.read_text()
            for word in ("njit", "fastmath", "nogil", "jit_options", "error_model", "_nrt"):
                assert word not in text, f"{module} names {word}"


def test_who_is_called_by_kernels_is_a_part_or_inlined():
    """Of a kernel with code of its own there would be two copies, that may round differently."""
    options, callers = {}, {}
    for _, path in modules():
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                call = mark if isinstance(mark, ast.Call) else ast.Call(mark, [], [])
                if getattr(call.func, "id", "") in ("kernel", "implements"):
                    options[node.name] = {keyword.arg for keyword in call.keywords}
                    if call.func.id == "implements":
                        options[node.name] = {"inlined"}
                    called = (y.func for y in ast.walk(node) if isinstance(y, ast.Call))
                    callers[node.name] = {y.id for y in called if isinstance(y, ast.Name)}
    called = set().union(*callers.values()) & options.keys()
    assert len(called) > 30
    of_integers = {"barrier", "come", "join", "meet", "part"}  # of a team
    assert {name for name in called if not options[name] & {"part", "inlined"}} == of_integers


def test_every_size_of_file_is_readable():
    for module, path in modules():
        assert len(path.read_text().splitlines()) <= 400, module


def test_importing_leaves_the_optional_packages_alone():
    code = "import sys, fastbptt; print({'matplotlib', 'tqdm', 'torch', 'jax'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr
