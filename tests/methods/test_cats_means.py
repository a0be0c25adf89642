"""CATS (reconstruction) in units of mean losses: a literal version, and what it promises."""

import copy
import itertools

import pytest
import torch

from gradvac.errors import GradientError
from gradvac.methods import CATS, StepGeometry
from gradvac.methods.simplex import raised_to_floors
from tests.methods.helpers import names, relative
from tests.reference.cats_means import LiteralMeanCATS

TASKS = names("t", 6)


def drawn(seed, step, tasks=TASKS, size=20):
    """By task gradient [P] and value of a mean loss, and share of the step; some tasks absent."""
    generator = torch.Generator().manual_seed(1000 * seed + step)
    draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)
    g = torch.randn(len(tasks), size, generator=generator, dtype=torch.float64)
    g = (g + 0.5 * g[0]) * torch.linspace(0.3, 1.0, len(tasks)).double()[:, None]
    share = draw(len(tasks)) * torch.logspace(0, -1.5, len(tasks)).double()
    share[1:] *= draw(len(tasks) - 1) < 0.7
    share, losses = share / share.sum(), 2 + 2 * draw(len(tasks))
    return {
        task: (g[n], float(losses[n]), float(share[n]))
        for n, task in enumerate(tasks)
        if share[n] > 0
    }


def geometry(found, step=0, groups=("a", "b")):
    """What an engine makes of it: gradients of share times mean loss, in two groups."""
    share = torch.tensor([s for _, _, s in found.values()], dtype=torch.float64)
    g = torch.stack([s * g for g, _, s in found.values()])
    losses = share * torch.tensor([loss for _, loss, _ in found.values()], dtype=torch.float64)
    gram = torch.stack([x @ x.T for x in g.tensor_split(len(groups), dim=1)])
    return StepGeometry(gram, losses, tuple(found), groups, step, share)


def fixed(norms, losses, shares):
    """Orthogonal gradients of mean losses."""
    g = torch.diag(torch.tensor(norms, dtype=torch.float64))
    rows = zip(g, losses, shares, strict=True)
    return {f"t{n}": row for n, row in enumerate(rows)}


def alphas(method):
    """alpha after the last update, and the mean shares, [N] each."""
    shares = torch.tensor(list(method.state_dict()["shares"].values()), dtype=torch.float64)
    logits = torch.tensor(list(method.state_dict()["alpha"].values()), dtype=torch.float64)
    shares = shares / shares.sum()
    return shares * logits.exp(), shares


@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize(
    ("bound", "cross_terms", "loss_term"),
    list(itertools.product(["relative", "absolute"], [False, True], ["raw", "ratio", "none"])),
)
def test_against_the_literal_version(seed, bound, cross_terms, loss_term):
    settings = {
        "rho": 0.5 if bound == "relative" else 0.05, "bound": bound, "cross_terms": cross_terms,
        "loss_term": loss_term, "floor": 0.1, "learning_rate": 0.2, "smoothing": 0.8,
    }  # fmt: skip
    ours, literal, on_floor = CATS(**settings, update_every=1), LiteralMeanCATS(**settings), 0
    for step in range(50):
        found = drawn(seed, step)
        weights = ours.weights(geometry(found, step))
        expected = torch.tensor(list(literal.step(found).values()), dtype=torch.float64)
        assert relative(weights[0], expected) <= 1e-9
        assert torch.equal(weights[0], weights[1])
        alpha, shares = alphas(ours)
        on_floor += bool((alpha <= shares.clamp_max(0.1) + 1e-12).any())
    assert on_floor > 3 and float((weights[0] - 1).abs().max()) > 0.3


@pytest.mark.parametrize("loss_term", ["raw", "ratio"])
def test_from_validation_gradients_against_the_literal_version(loss_term):
    settings = {
        "rho": 0.5, "bound": "relative", "cross_terms": True, "loss_term": loss_term,
        "floor": 0.1, "learning_rate": 0.2, "smoothing": 0.8,
    }  # fmt: skip
    ours = CATS(**settings, update_every=1, gradients="validation")
    literal, from_training = LiteralMeanCATS(**settings), CATS(**settings, update_every=1)
    for step in range(30):
        found, held = drawn(0, step), drawn(1, step)
        held = {task: (g, loss, 1.0) for task, (g, loss, _) in held.items()}
        held |= {task: (g, loss, 1.0) for task, (g, loss, _) in found.items() if task not in held}
        held |= {task: (torch.ones(20).double(), 1.0, 1.0) for task in TASKS if task not in held}
        ours.observe(StepGeometry(*observed(held)))
        if step == 20:
            again = CATS(**settings, update_every=1, gradients="validation")
            again.load_state_dict(copy.deepcopy(ours.state_dict()))
            ours = again
        weights = ours.weights(geometry(found, step))[0]
        expected = torch.tensor(list(literal.step(found, held).values()), dtype=torch.float64)
        assert relative(weights, expected) <= 1e-9
        other = from_training.weights(geometry(found, step))[0]
    assert relative(weights, other) > 0.05


def observed(held):
    """The arguments of a geometry of mean losses, in one group."""
    g = torch.stack([g for g, _, _ in held.values()])
    losses = torch.tensor([loss for _, loss, _ in held.values()], dtype=torch.float64)
    return (g @ g.T)[None], losses, tuple(held), ("whole_model",), 0


def test_an_update_needs_gradients_of_every_task_observed_right_before_it():
    method = CATS(update_every=2, gradients="validation")
    found = fixed((1.0, 2.0), (3.0, 3.0), (0.5, 0.5))
    assert not method.due
    method.weights(geometry(found))
    assert method.due
    text = r"updates at step 1, and observe was not called before it with a gradient of t0, t1"
    with pytest.raises(GradientError, match=text):
        method.weights(geometry(found, 1))
    method.observe(StepGeometry(*observed(found)))
    method.weights(geometry(found, 1))
    method.observe(StepGeometry(*observed(found)))  # of a step that is not due
    method.weights(geometry(found, 2))
    with pytest.raises(GradientError, match="before it with a gradient of t0, t1"):
        method.weights(geometry(found, 3))
    method.observe(StepGeometry(*observed({"t0": found["t0"]})))
    with pytest.raises(GradientError, match="before it with a gradient of t1"):
        method.weights(geometry(found, 3))


@pytest.mark.parametrize("cross_terms", [False, True])
def test_before_anything_is_observed_the_curvature_is_unknown_and_0(cross_terms):
    method = CATS(gradients="validation", cross_terms=cross_terms)
    found = fixed((1.0, 2.0), (3.0, 3.0), (0.5, 0.5))
    assert method.weights(geometry(found))[0].tolist() == [1.0, 1.0]
    assert method.report()["curvature"].tolist() == [0.0, 0.0]
    method.observe(StepGeometry(*observed(found)))
    method.weights(geometry(found))
    assert method.report()["curvature"][0] > 0


def test_what_validation_gradients_do_not_go_with():
    with pytest.raises(GradientError, match="gradients is 'test'; it must be training or valid"):
        CATS(gradients="test")
    with pytest.raises(GradientError, match="'validation'; units='share' has only 'training'"):
        CATS(gradients="validation", units="share")
    found = fixed((1.0, 2.0), (3.0, 3.0), (0.5, 0.5))
    with pytest.raises(GradientError, match="gradients is not 'validation'"):
        CATS().observe(StepGeometry(*observed(found)))
    method = CATS(gradients="validation")
    before = copy.deepcopy(method.state_dict())
    bad = fixed((1.0, float("nan")), (3.0, 3.0), (0.5, 0.5))
    with pytest.raises(GradientError, match="task 't1' is not finite"):
        method.observe(StepGeometry(*observed(bad)))
    assert str(method.state_dict()) == str(before)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_first_weights_are_exactly_one_whatever_the_batch(seed):
    method = CATS(update_every=20)
    for step in range(20):
        weights = method.weights(geometry(drawn(seed, step), step))
        assert torch.equal(weights, torch.ones_like(weights))
    assert not torch.equal(method.weights(geometry(drawn(seed, 20))), torch.ones_like(weights))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("options", [{}, {"floor": 0.05, "learning_rate": 3.0}, {"rho": 10.0}])
def test_alphas_stay_on_the_simplex_above_the_floor(seed, options):
    method = CATS(**options, update_every=1)
    for step in range(90):
        method.weights(geometry(drawn(seed, step), step))
        alpha, shares = alphas(method)
        assert float(alpha.sum()) == pytest.approx(1, abs=1e-12)
        assert bool((alpha >= shares.clamp_max(method.floor) - 1e-15).all())


def test_the_update_does_not_depend_on_the_shares_of_a_batch():
    """Where mean losses and their gradients are the same: only the mean shares count."""
    given = [(0.6, 0.3, 0.1), (0.2, 0.3, 0.5), (0.5, 0.1, 0.4), (0.5, 0.25, 0.25)]
    found = []
    for order in itertools.permutations(given):
        method = CATS(update_every=2, rho=0.1)
        method._lambda_c = 1.0
        for step, shares in enumerate((*order, order[0])):
            here = fixed((1.0, 2.0, 3.0), (4.0, 3.0, 5.0), shares)
            if step == 2:  # the second update is at other mean shares, so only the first counts
                found.append((method.weights(geometry(here))[0], sum(map(torch.tensor, order[:2]))))
                break
            method.weights(geometry(here))
    for weights, total in found:
        (same, *others) = [w for w, other in found if torch.allclose(other, total)]
        assert others and all(relative(w, same) <= 1e-12 for w in others)
        assert relative(weights, torch.ones(3).double()) > 0.05


def test_losses_alone_multiply_the_weights_whatever_the_shares():
    methods = [CATS(update_every=1, rho=100.0, floor=0.0) for _ in range(2)]
    for _ in range(20):
        one = drawn(0, 0)
        other = {task: (g, loss, 1 / len(one)) for task, (g, loss, _) in one.items()}
        weights = [
            method.weights(geometry(found))[0]
            for method, found in zip(methods, (one, other), strict=True)
        ]
        ratios = [w / w[0] for w in weights]
        assert relative(*ratios) <= 1e-12
    assert relative(ratios[0], torch.ones(len(one)).double()) > 0.5


def test_the_task_with_the_largest_pull_loses_weight_in_units_of_mean_losses():
    found = fixed((1.0, 2.0, 1.5), (3.0, 3.0, 3.0), (1 / 3, 1 / 3, 1 / 3))
    method = CATS(update_every=1)
    for _ in range(30):
        weights = method.weights(geometry(found))[0]
    assert weights.argsort().tolist() == [1, 2, 0] and float(weights[1]) < 1 < float(weights[0])


@pytest.mark.parametrize("cross_terms", [False, True])
def test_a_bound_out_of_reach_gives_the_alphas_of_least_curvature(cross_terms):
    norms, shares = torch.tensor([1.0, 2.0, 0.5]).double(), (0.7, 0.2, 0.1)
    method = CATS(rho=0.01, cross_terms=cross_terms, update_every=1, loss_term="none")
    for _ in range(600):
        weights = method.weights(geometry(fixed(norms.tolist(), (4.0, 3.0, 5.0), shares)))[0]
    best = norms**-2 / (norms**-2).sum()  # least sum of alpha_n^2 |g_n|^2
    assert relative(weights, best / torch.tensor(shares, dtype=torch.float64)) <= 1e-6


@pytest.mark.parametrize("rho", [0.6, 0.8])
def test_curvature_settles_at_a_bound_that_can_be_met(rho):
    found = fixed((1.0, 1.0, 1.0, 1.0), (3.0, 3.2, 3.4, 3.6), (0.6, 0.2, 0.15, 0.05))
    method = CATS(rho=rho, update_every=1)
    for _ in range(2000):
        method.weights(geometry(found))
    assert method.report()["curvature"].unique().tolist() == pytest.approx([rho], abs=1e-3)
    assert 0 < float(method.report()["multiplier"][0]) < 10


def test_the_noise_of_batches_alone_moves_weight_to_tasks_that_are_often_absent():
    """Of mean losses |g_n|^2 is 1 / s_n: independent tokens and no signal."""
    steady, often_absent = (CATS(update_every=1, loss_term="none") for _ in range(2))
    noise = lambda *shares: fixed([s**-0.5 for s in shares], [3.0] * len(shares), shares)
    for step in range(400):
        weights = steady.weights(geometry(noise(0.6, 0.3, 0.1)))[0]
        rare = noise(0.6, 0.3, 0.1) if step % 10 == 0 else noise(2 / 3, 1 / 3)
        moved = often_absent.weights(geometry(rare))[0]
        if step % 10 == 0:
            last = moved
    assert relative(weights, torch.ones(3).double()) <= 1e-9
    assert float(last[2]) > 3 and float(last[:2].max()) < 1.001


def test_losses_without_shares_are_mean_losses():
    g = torch.diag(torch.tensor([1.0, 2.0])).double()
    given = StepGeometry(
        (g @ g.T)[None], torch.tensor([3.0, 3.0]).double(), ("t0", "t1"), ("a",), 0
    )
    half = fixed((1.0, 2.0), (3.0, 3.0), (0.5, 0.5))
    one, other = CATS(update_every=1), CATS(update_every=1)
    for _ in range(10):
        own = one.weights(given)[0]
        assert relative(other.weights(geometry(half, groups=("a",)))[0], own) <= 1e-12
    assert float(own[0]) > 1.05


def test_a_task_that_is_gone_keeps_its_weight_and_the_others_a_mean_of_one():
    found = fixed((1.0, 2.0, 0.5), (4.0, 3.0, 5.0), (0.7, 0.2, 0.1))
    method = CATS(update_every=1)
    for step in range(20):
        method.weights(geometry(found, step))
    without = fixed((1.0, 2.0), (4.0, 3.0), (0.8, 0.2))
    logits = []
    for step in range(20, 220):
        method.weights(geometry(without, step))
        logits.append(method.state_dict()["alpha"]["t2"])
    assert len(set(logits[98:])) == 1 and len(set(logits[:98])) > 90
    state = method.state_dict()
    shares = torch.tensor([state["shares"][t] for t in without], dtype=torch.float64)
    weights = torch.tensor([state["alpha"][t] for t in without], dtype=torch.float64).exp()
    assert float(shares @ weights / shares.sum()) == pytest.approx(1, abs=1e-12)
    weights = method.weights(geometry(found, 220))[0]
    assert float(weights[2].log()) == pytest.approx(logits[-1], abs=1e-15)
    assert method.state_dict()["alpha"]["t2"] != logits[-1]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_resumed_method_goes_on_bit_for_bit(seed):
    method = CATS(update_every=3, warmup_steps=5)
    for step in range(25):
        method.weights(geometry(drawn(seed, step), step))
    resumed = CATS(update_every=3, warmup_steps=5)
    resumed.load_state_dict(copy.deepcopy(method.state_dict()))
    for step in range(25, 40):
        here = geometry(drawn(seed, step), step)
        assert torch.equal(resumed.weights(here), method.weights(here))


@pytest.mark.parametrize("seed", range(8))
def test_raised_weights_are_the_nearest_in_relative_entropy(seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.rand(7, generator=generator, dtype=torch.float64)
    logits, shares = 4 * draw(), draw() ** 3
    shares = shares / shares.sum()
    floors = (0.1 / shares).clamp_max(1) if seed % 2 else 0.5 * draw()
    found = raised_to_floors(logits, shares, floors)
    assert float(shares @ found.exp()) == pytest.approx(1, abs=1e-12)
    assert bool((found >= floors.log()).all())
    # The conditions of Karush, Kuhn and Tucker: above the floor one factor, on it a larger one.
    factor = found - logits
    free = found > floors.log()
    assert float(factor[free].max() - factor[free].min()) <= 1e-12
    assert free.all() or float(factor[~free].min()) >= float(factor[free].max()) - 1e-12


def test_weights_that_all_have_to_be_one():
    shares = torch.full((4,), 0.25).double()
    found = raised_to_floors(torch.arange(4.0).double(), shares, torch.ones(4).double())
    assert found.tolist() == [0.0] * 4


def test_units_and_parametrization():
    with pytest.raises(GradientError, match="units is 'token'; it must be mean or share"):
        CATS(units="token")
    with pytest.raises(GradientError, match="parametrization is 'softmax'; units='mean' has none"):
        CATS(parametrization="softmax")


OLD = {  # of a version without units, after one step
    "seed": 0,
    "alpha": {"fr": 0.1, "hi": -0.1},
    "lambda_n": {"fr": 0.0, "hi": 0.0},
    "losses": {"fr": 3.0, "hi": 4.0},
    "initial": {"fr": 3.0, "hi": 4.0},
    "parametrization": "softmax",
    "lambda_c": 0.25,
    "lambda_s": 0.0,
    "steps": 1,
    "averages": {
        "targets": torch.eye(2).double().expand(2, 2, 2).clone(),
        "groups": ["gram", "weight"],
        "tasks": ["fr", "hi"],
    },
}


def test_states_of_earlier_versions_are_those_of_shares():
    method = CATS(units="share")
    method.load_state_dict(OLD)
    here = StepGeometry(
        torch.eye(2).double()[None], torch.ones(2).double(), ("fr", "hi"), ("a",), 1
    )
    expected = 1 + 0.8 * (2 * torch.tensor([0.1, -0.1], dtype=torch.float64).softmax(0) - 1)
    assert relative(method.weights(here)[0], expected) <= 1e-15
    with pytest.raises(
        GradientError, match=r"units is 'mean'; the state is of CATS\(units='share'\)"
    ):
        CATS().load_state_dict(OLD)
    with pytest.raises(GradientError, match=r"units is 'share'; .* CATS\(units='mean'\)"):
        method.load_state_dict(CATS().state_dict())
