"""Programs are compiled for a structure once: what is a number is an argument."""

from __future__ import annotations

import gc
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fairbilevel as fb
from fairbilevel import devices, fairness
from fairbilevel.devices import Program, compile_cache
from fairbilevel.devices import _program as programs


@pytest.fixture
def cache():
    """JAX's own settings of the cache, put back afterwards."""
    names = (
        "jax_enable_compilation_cache",
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()


# ---------------------------------------------------------------- in a process


def scaled(structure, x, factor):
    return {"out": structure[1] * factor * x["in"]}


def test_one_executable_a_structure_and_shape():
    program = Program(scaled)
    for factor in (2.0, 3.0):
        for size, times in ((4, 1), (5, 1), (4, 10)):
            got = program(("a", times), {"in": np.ones(size, np.float32)}, np.float32(factor))
            np.testing.assert_array_equal(got["out"], times * factor * np.ones(size))
    assert program.compiled == 3
    program(("a", 1), {"in": np.ones(4, np.int32)}, np.float32(1))
    assert program.compiled == 4


def test_compiling_is_booked_and_nothing_else():
    program, costs = Program(scaled), fb.train.Costs()
    program(("a", 1), {"in": np.ones(3)}, np.float32(1), costs=costs)
    compiling = costs.compile_seconds
    assert compiling > 0
    program(("a", 1), {"in": np.ones(3)}, np.float32(2), costs=costs)
    assert costs.compile_seconds == compiling


def test_the_first_argument_may_be_donated():
    program = Program(lambda structure, x: x + 1, donate=True)
    x = jnp.ones(3)
    program(None, x)
    assert x.is_deleted()
    copied = devices.copied(jnp.ones(3))
    assert not program(None, copied).is_deleted()


def test_programs_of_long_ago_are_let_go(monkeypatch):
    monkeypatch.setattr(programs, "HELD", 2)
    program = Program(scaled)
    for times in (1, 2, 1, 3):
        program(("a", times), {"in": np.ones(2)}, np.float32(1))
    assert program.compiled == 2
    kept = {key[0][1] for key in program._executables}
    assert kept == {1, 3}  # the one that was used last stays
    gc.collect()


# ---------------------------------------------------------------- what is structure


def test_runs_that_differ_in_numbers_compile_nothing_new(tiny_problem):
    """Seed, roles, tolerances, sparsity, learning rates, steps of scores and multipliers, budgets:
    all of it numbers, for the solver, its yardstick and the dense model."""
    first = tiny_problem(fairness.ExcessAccuracyGap(0.02))
    options = {"batch_size": 32, "buffer_size": 32}
    reference = fb.train.train_dense(first, steps=40, batch_size=32)
    fb.BilevelSolver(steps=80, sparsity=0.5, **options).run(first, reference)
    fb.pruners.GradualMagnitude(steps=60, sparsity=0.5, batch_size=32).run(first, reference)

    def compiled():
        return fb.train.weight_stretch.compiled, fb.solver.outer_stretch.compiled

    before = compiled()
    other = tiny_problem(fairness.ExcessAccuracyGap(0.3), seed=5)
    reference = fb.train.train_dense(other, steps=57, batch_size=32, seed=3, learning_rate=0.03)
    fb.BilevelSolver(
        steps=123, sparsity=0.71, seed=9, learning_rate=0.01, score_step=0.03, dual_step=0.5,
        bilevel_share=0.7, violation_every=3, multiplier_rule="gradient-ascent", **options,
    ).run(other, reference)  # fmt: skip
    fb.pruners.GradualMagnitude(
        steps=90, sparsity=0.8, batch_size=32, learning_rate=0.02, rounds=7
    ).run(other, reference)
    fb.pruners.Lottery(steps=90, sparsity=0.3, batch_size=32).run(other, reference)
    assert compiled() == before


@pytest.mark.parametrize(
    "rule",
    ["gradient-ascent", "nupi:smoothing=0.5", "augmented-lagrangian", "multiplicative-weights"],
)
def test_numbers_of_a_multiplier_rule_are_no_structure(rule):
    name = rule.partition(":")[0]
    one, other = fairness.multiplier_rule(rule, 0.1), fairness.multiplier_rule(name, 0.7)
    assert one.update is other.update


def test_tolerances_are_no_structure():
    assert fairness.AccuracyGap(0.1).structure == fairness.AccuracyGap(0.2).structure
    assert fairness.AccuracyGap(0.1).structure != fairness.DegradationGap(0.1).structure
    floor = fairness.WorstGroupAccuracy((0.5, 0.7))
    assert floor.structure == fairness.WorstGroupAccuracy(0.9).structure
    np.testing.assert_allclose(floor.limits(2), [-0.5, -0.7])
    np.testing.assert_allclose(fairness.AccuracyGap((0.1, 0.2)).limits(2), [0.1, 0.2, 0.1, 0.2])


# ---------------------------------------------------------------- on disk


def entries(folder):
    return {path for path in folder.rglob("*-cache") if path.stat().st_size}


def forget():
    """What a new process would not know."""
    for program in (fb.train.weight_stretch, fb.solver.outer_stretch):
        program._executables.clear()
    jax.clear_caches()


def test_another_seed_finds_its_programs_on_disk(tiny_problem, tmp_path, cache):
    jax.experimental.compilation_cache.compilation_cache.reset_cache()
    assert compile_cache(tmp_path / "here") == tmp_path / "here"
    for seed, tolerance, sparsity in ((0, 0.02, 0.5), (1, 0.1, 0.7)):
        forget()
        problem = tiny_problem(fairness.ExcessAccuracyGap(tolerance), seed=seed, width=7)
        reference = problem.refer(problem.initial_network(seed))
        solver = fb.BilevelSolver(steps=40, sparsity=sparsity, batch_size=16, seed=seed)
        solver.run(problem, reference)
        now = entries(tmp_path / "here")
        if seed:
            assert now == found
        found = now
    assert any("_outer_stretch" in path.name for path in found)


@pytest.mark.parametrize("damage", [b"", b"no program at all", None])
def test_a_damaged_entry_costs_a_compilation(damage, tmp_path, cache):
    jax.experimental.compilation_cache.compilation_cache.reset_cache()
    compile_cache(tmp_path)
    program = Program(scaled)
    arguments = (("a", 7), {"in": np.arange(33, dtype=np.float32)}, np.float32(2))
    expected = np.asarray(program(*arguments)["out"])
    (entry,) = entries(tmp_path)
    entry.write_bytes(entry.read_bytes()[:100] if damage is None else damage)
    jax.clear_caches()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX says what it could not read
        again = Program(scaled)(*arguments)["out"]
    np.testing.assert_array_equal(again, expected)


def test_where_programs_are_kept(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    monkeypatch.setattr("sys.platform", "linux")
    default = devices._cache.default_cache()
    assert default.parts[-4:-1] == ("mine", "fairbilevel", "programs")
    jax.config.update("jax_compilation_cache_dir", "/told/by/JAX")
    assert str(compile_cache()) == "/told/by/JAX"
    jax.config.update("jax_compilation_cache_dir", None)
    assert compile_cache() == default
    assert jax.config.jax_compilation_cache_dir == str(default)
    assert compile_cache("off") is None
    assert not jax.config.jax_enable_compilation_cache
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: compiled programs want a folder"):
        compile_cache(tmp_path / "file")


def test_a_program_compiles_where_xla_lacks_an_option(monkeypatch):
    double = Program(lambda _, x: 2 * x)
    monkeypatch.setattr(double, "_options", lambda arguments: {"xla_no_such_option": True})
    assert double(None, 3.0) == 6.0


def test_the_options_that_xla_has_are_kept():
    asked = []

    class Lowered:
        def compile(self, compiler_options=None):
            asked.append(compiler_options)
            if "lacking" in (compiler_options or {}):
                raise jax.errors.JaxRuntimeError("No such compile option: 'lacking'")

    programs._compiled(Lowered(), {"lacking": True, "there": 1})
    assert asked == [{"lacking": True, "there": 1}, {"there": 1}]
