"""What every method promises, written once and asked of all of them."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gradvac.errors import GradientError
from gradvac.experiment.run.checkpoint import join_state, split_state
from gradvac.methods import (
    CATS,
    FAMO,
    METHODS,
    MGDA,
    GradNorm,
    GradVac,
    Joint,
    Method,
    PCGrad,
    StaticWeights,
    StepGeometry,
    TorchJD,
)
from tests.methods.helpers import names, relative, task_gradients

K = 5
TASKS = names("t", K)
GROUPS = ("embedding", "encoder.layers.0", "decoder.layers.0")

CASES: dict[str, Callable[[], Method]] = {
    "joint": Joint,
    "static": lambda: StaticWeights({t: 0.5 + n for n, t in enumerate((*TASKS, "new"))}),
    "gradvac": lambda: GradVac(beta=0.1, seed=3),
    "gradvac_rescaled": lambda: GradVac(beta=0.1, rescale=True, tasks=["t0", "t3"]),
    "gradvac_fixed": lambda: GradVac(target=0.5),
    "pcgrad": lambda: PCGrad(seed=3),
    "mgda": MGDA,
    "mgda_l2": lambda: MGDA("l2"),
    "mgda_loss": lambda: MGDA("loss"),
    "mgda_loss+": lambda: MGDA("loss+"),
    "gradnorm": GradNorm,
    "gradnorm_whole": lambda: GradNorm(0.5, 0.1, "whole_model", initial_losses=5.0, smoothing=0.9),
    "cats": lambda: CATS(update_every=2),
    "cats_stacked": lambda: CATS(update_every=1, cross_terms=False, loss_term="ratio"),
    "cats_share": lambda: CATS(update_every=2, units="share"),
    "cats_lagrangian": lambda: CATS(
        update_every=1,
        parametrization="lagrangian",
        learning_rate=1e-3,
        loss_term="none",
        units="share",
    ),
    "famo": FAMO,
    "torchjd_aligned": lambda: TorchJD("AlignedMTL"),
    "torchjd_imtl": lambda: TorchJD("IMTLGWeighting"),
    "torchjd_mgda": lambda: TorchJD("MGDA"),
    "torchjd_pcgrad": lambda: TorchJD("PCGrad", seed=3),
    "torchjd_random": lambda: TorchJD("Random", seed=3),
    "torchjd_gradvac": lambda: TorchJD("GradVac", {"beta": 0.1}),
    "torchjd_pcd": lambda: TorchJD("PCD"),
}
# TorchJD's own: an absolute eps (GradVac, PCD, IMTL-G's 1e-12), row order of draws.
SCALE_DEPENDENT = {"torchjd_gradvac", "torchjd_pcd", "torchjd_imtl", "torchjd_aligned"}
REMEMBERS_ROWS = {"torchjd_gradvac", "torchjd_pcd"}


@pytest.fixture(params=CASES)
def case(request):
    if request.param.startswith("torchjd"):
        pytest.importorskip("torchjd")
    return request.param


def gradients(step: int, regime: str = "conflicting", tasks: tuple[str, ...] = TASKS):
    """Rows of ``tasks`` in every group, each task's from its own generator."""
    rows = {}
    for n, group in enumerate(GROUPS):
        every = task_gradients(regime, K + 1, 30, torch.Generator().manual_seed(100 * step + n))
        rows[group] = every[[(*TASKS, "new").index(task) for task in tasks]]
    return rows


def losses(step: int, tasks: tuple[str, ...] = TASKS):
    every = torch.rand(K + 1, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return (0.5 + every)[[(*TASKS, "new").index(task) for task in tasks]]


def geo(step: int, tasks: tuple[str, ...] = TASKS, **options) -> StepGeometry:
    rows = options.pop("rows", None) or gradients(step, tasks=tasks)
    gram = torch.stack([g @ g.T for g in rows.values()])
    return StepGeometry(gram, losses(step, tasks), tasks, tuple(rows), step)


def trained(case: str, steps: int = 12) -> Method:
    method = CASES[case]()
    for step in range(steps):
        method.weights(geo(step))
    return method


def stored(method: Method) -> dict:
    """The state after a journey through a checkpoint file: tensors, and JSON."""
    tensors, plain = split_state(method.state_dict())
    return join_state({k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(plain)))


def same(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b


def test_every_registered_method_is_here():
    pytest.importorskip("torchjd")
    ours = {kind for kind in METHODS.values() if kind.__module__.startswith("gradvac.")}
    assert {type(make()) for make in CASES.values()} == ours


def test_shape_type_and_finite(case):
    weights = trained(case).weights(geo(50))
    assert weights.shape == (len(GROUPS), K) and weights.dtype == torch.float64
    assert bool(weights.isfinite().all())


@pytest.mark.parametrize("power", [-8, -4, 4, 8])
def test_no_common_scale_of_the_gradients_matters(case, power):
    if case in SCALE_DEPENDENT:
        pytest.skip("an absolute epsilon of TorchJD")
    one, other = CASES[case](), CASES[case]()
    for step in range(12):
        rows = gradients(step)
        scaled = {name: g * 10.0**power for name, g in rows.items()}
        a = one.weights(geo(step, rows=rows))
        assert relative(other.weights(geo(step, rows=scaled)), a) <= 1e-10


def test_permuting_the_tasks_permutes_the_weights(case):
    shuffle = [4, 2, 0, 3, 1]
    shuffled = tuple(TASKS[n] for n in shuffle)
    one, other = CASES[case](), CASES[case]()
    for step in range(12):
        expected = one.weights(geo(step))[:, shuffle]
        assert relative(other.weights(geo(step, shuffled)), expected) <= 1e-10


def test_groups_one_at_a_time_or_all_at_once(case):
    together, alone = CASES[case](), CASES[case]()
    if together.needs_all_groups:
        alone.weights(geo(0, rows={GROUPS[0]: gradients(0)[GROUPS[0]]}))
        with pytest.raises(GradientError, match=r"needs all 1 parameter groups of step 0 at once"):
            alone.weights(geo(0, rows={GROUPS[1]: gradients(0)[GROUPS[1]]}))
        return
    for step in range(4):
        expected = together.weights(geo(step))
        for k in (2, 0, 1):
            rows = {GROUPS[k]: gradients(step)[GROUPS[k]]}
            assert relative(alone.weights(geo(step, rows=rows))[0], expected[k]) <= 1e-14


@pytest.mark.parametrize("kind", ["duplicated", "opposed", "one zero", "all zero", "far apart"])
def test_degenerate_gradients_stay_finite(case, kind):
    method = trained(case)
    for step in range(50, 60):
        rows = gradients(step)
        for g in rows.values():
            if kind == "duplicated":
                g[1:] = g[0]
            elif kind == "opposed":
                g[1], g[2], g[3] = -g[0], -3 * g[0], 0.5 * g[0]
            elif kind == "one zero":
                g[2] = 0
            elif kind == "all zero":
                g.zero_()
            else:
                g[0] *= 1e-8
                g[1] *= 1e8
        assert bool(method.weights(geo(step, rows=rows)).isfinite().all())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_gradient_or_loss_is_named_and_changes_nothing(case, bad):
    method = trained(case)
    before = method.state_dict()
    geometry = geo(50)
    geometry.gram[1, 2, :] = geometry.gram[1, :, 2] = bad
    with pytest.raises(GradientError, match=r"task 't2'.*group 'encoder.layers.0'.*step 50"):
        method.weights(geometry)
    assert same(method.state_dict(), before)
    geometry = geo(51)
    geometry.losses[3] = bad
    with pytest.raises(GradientError, match=r"loss of task 't3' is (nan|inf) at step 51"):
        method.weights(geometry)
    assert same(method.state_dict(), before)
    untouched = trained(case)
    assert torch.equal(method.weights(geo(52)), untouched.weights(geo(52)))


def test_state_round_trip_and_resume_are_bit_equal(case):
    method, resumed = trained(case), CASES[case]()
    state = stored(method)
    resumed.load_state_dict(state)
    assert same(resumed.state_dict(), method.state_dict())
    for step in range(12, 20):
        assert torch.equal(resumed.weights(geo(step)), method.weights(geo(step)))
    assert same(resumed.state_dict(), method.state_dict())
    assert not same(state, method.state_dict()) or case in STATELESS  # a copy, not a view


STATELESS = {"joint", "static", "gradvac_fixed", "pcgrad", "mgda", "mgda_l2", "mgda_loss"} | {
    "mgda_loss+",
    "torchjd_aligned",
    "torchjd_imtl",
    "torchjd_mgda",
    "torchjd_pcgrad",
    "torchjd_random",
}


CONTINUE = """
import sys
import torch
from tests.methods.test_properties import CASES, geo
states, expected = torch.load(sys.argv[1], weights_only=True)
for case, state in states.items():
    method = CASES[case]()
    method.load_state_dict(state)
    assert torch.equal(method.weights(geo(4)), expected[case]), case
print(len(states), "continued")
"""


def test_state_loads_in_a_new_process(tmp_path):
    """Where names hash otherwise, so that sets and dictionaries of names have another order."""
    pytest.importorskip("torchjd")
    methods = {case: trained(case, 4) for case in CASES}
    states = {case: method.state_dict() for case, method in methods.items()}
    expected = {case: method.weights(geo(4)) for case, method in methods.items()}
    torch.save((states, expected), tmp_path / "states.pt")
    done = subprocess.run(
        [sys.executable, "-c", CONTINUE, tmp_path / "states.pt"],
        env=os.environ | {"PYTHONHASHSEED": "123"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{len(CASES)} continued\n", done.stderr


def test_tasks_come_and_go(case):
    if case in REMEMBERS_ROWS:
        method = trained(case)
        before = method.state_dict()
        with pytest.raises(GradientError, match=r"remembers tasks by row.*step 12 has t1, t4"):
            method.weights(geo(12, ("t4", "t1")))
        assert same(method.state_dict(), before)
        return
    method, resumed = trained(case), CASES[case]()
    companies = [("t4", "t1"), ("t1",), ("new", "t0", "t2"), (*TASKS, "new"), TASKS]
    for step, tasks in enumerate(companies * 3, start=12):
        weights = method.weights(geo(step, tasks))
        assert weights.shape == (len(GROUPS), len(tasks))
        assert bool(weights.isfinite().all())
        resumed.load_state_dict(stored(method))
    assert torch.equal(resumed.weights(geo(99)), method.weights(geo(99)))


def test_reports_have_the_groups_first(case):
    method = trained(case)
    assert all(value.shape[0] == len(GROUPS) for value in method.report().values())


def test_a_global_random_stream_is_neither_used_nor_moved(case):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = trained(case).weights(geo(20))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(trained(case).weights(geo(20)), first)
