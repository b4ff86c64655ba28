"""Shapes and types of every public function are checked while the tests run."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxtyping
import numpy as np
import pytest
from jaxtyping import _import_hook, install_import_hook

if TYPE_CHECKING:
    import fairbilevel as fb

# Most of the suite's time is compilation. Its runs are short: code that is made quickly takes a
# quarter of that time, in one thread; what tests assert holds of any code. All workers, and the
# processes that tests start, share what one of them has compiled.
QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
)
if int(version("jaxlib").split(".")[1]) < 12:  # later ones know no other way, and stop at the flag
    QUICK += ("--xla_cpu_use_fusion_emitters=false",)
os.environ.setdefault("XLA_FLAGS", " ".join(QUICK))
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "programs")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# PEP 484's numeric tower: an int is welcome where a float is asked for.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True, is_debug=False))"

# Functions within functions are made anew whenever the outer one runs, and would be prepared for
# checking each time: a quarter of the suite's time. What they are given comes from checked ones.
_visit = _import_hook.JaxtypingTransformer.visit_FunctionDef


def _outermost_alone(self: Any, node: ast.FunctionDef) -> ast.AST:
    inside = any(isinstance(parent, ast.FunctionDef) for parent in self._parents)
    return node if inside else _visit(self, node)


_import_hook.JaxtypingTransformer.visit_FunctionDef = _outermost_alone


def pytest_configure(config: pytest.Config) -> None:
    """The package with checked types, in every process but the one that only hands out tests."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        with install_import_hook("fairbilevel", CHECKER):
            library = importlib.import_module("fairbilevel")
            for name in library.__all__:  # opened when first asked for: now
                getattr(library, name)


# Files that take longest come first, so that no worker is left with one of them at the end.
LONGEST = (
    "test_devices", "test_notebooks", "test_deploy", "test_pruners", "test_solver", "test_train",
    "test_executors", "test_pretrained", "test_crashes", "test_large", "test_precision",
    "test_implicit", "test_docs", "test_profile",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers are handed files in the order of the tests."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


# Tests that hand over values of a wrong type on purpose, to see them refused by the package itself.
WRONG_TYPES = ("test_bad_seeds", "test_bad_calls", "test_bad_options")


@pytest.fixture(autouse=True)
def _checked(request: pytest.FixtureRequest):
    off = request.node.name.startswith(WRONG_TYPES)
    if off:
        jaxtyping.config.update("jaxtyping_disable", True)
    yield
    if off:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tiny_data() -> fb.data.Dataset:
    """480 rows of 6 numbers, 3 classes that overlap, 3 groups of which one is small and harder."""
    import fairbilevel as fb

    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat([0, 1, 2], [240, 160, 80]))
    y = np.arange(480) % 3
    centers = rng.normal(0, 1.6, (3, 6))
    x = centers[y] + rng.normal(size=(480, 6)) * np.where(group == 2, 1.6, 1.0)[:, None]
    names = {"classes": ("x", "y", "z"), "groups": ("many", "some", "few")}
    return fb.data.from_arrays(x.astype(np.float32), y, group, **names)


@pytest.fixture(scope="session")
def tiny_problem(tiny_data: fb.data.Dataset) -> Callable[..., fb.FairPruningProblem]:
    """A small problem on the tiny data: an MLP of 12 and 6 neurons by default."""
    import fairbilevel as fb

    def make(*constraints: Any, model: Any = "mlp", **options: Any) -> fb.FairPruningProblem:
        if model == "mlp":
            options.setdefault("width", 12)
        return fb.FairPruningProblem(model, tiny_data, constraints=constraints, **options)

    return make


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder and what is in it."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b""
            for p in sorted(folder.rglob("*"))
        }

    return read


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 300 rows: two groups that differ, two classes that a small network tells apart."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype("float32")
    group = rng.integers(0, 2, 300)
    y = (x[:, 0] + 0.7 * x[:, 1] * group + 0.3 * rng.normal(size=300) > 0).astype(int)
    path = tmp_path_factory.mktemp("source") / "rows.npz"
    np.savez(path, x=x, y=y, group=group)
    return path


# Reads a request a line: a file that was exported, rows, and where the logits belong.
READ = """
import json
import sys
import numpy as np
for line in sys.stdin:
    file, rows, out = json.loads(line)
    x = np.load(rows)
    if file.endswith(".onnx"):
        import onnxruntime
        session = onnxruntime.InferenceSession(file)
        logits = session.run(None, {session.get_inputs()[0].name: x})[0]
    else:
        import jax.export
        with open(file, "rb") as stream:
            logits = jax.export.deserialize(bytearray(stream.read())).call(x)
    assert not {"fairbilevel", "flax"} & set(sys.modules)
    np.save(out, logits)
    print("written", flush=True)
"""


@pytest.fixture(scope="session")
def alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[Path, np.ndarray], np.ndarray]]:
    """Logits of a file by its runtime, in a process without this library, which serves them all."""
    place = tmp_path_factory.mktemp("alone")
    with subprocess.Popen(
        [sys.executable, "-c", READ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=place,
    ) as process:

        def logits(file: Path, rows: np.ndarray) -> np.ndarray:
            np.save(place / "rows.npy", rows)
            words = [str(file), str(place / "rows.npy"), str(place / "out.npy")]
            process.stdin.write(json.dumps(words) + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == "written\n"
            return np.load(place / "out.npy")

        yield logits
