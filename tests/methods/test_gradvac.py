"""Properties of GradVac and PCGrad that follow from the paper or from the interface."""

import math

import pytest
import torch

from gradvac.errors import GradientError
from gradvac.methods import GradVac, PCGrad, StepGeometry
from tests.methods.helpers import geometry, names, random_order, relative, task_gradients


def draw(regime, n_tasks, size=50, seed=0):
    return task_gradients(regime, n_tasks, size, torch.Generator().manual_seed(seed))


def trained(regime="shared", n_tasks=4, steps=20, **options):
    """A method that has seen some steps, so that its targets are not 0."""
    method = GradVac(beta=0.2, **options)
    for step in range(steps):
        method.weights(geometry(draw(regime, n_tasks, seed=step), step=step))
    return method


def copy_of(method, **options):
    copy = GradVac(beta=method.beta, **options)
    copy.load_state_dict(method.state_dict())
    return copy


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def vector(degrees, length=1.0):
    angle = math.radians(degrees)
    return [length * math.cos(angle), length * math.sin(angle)]


def rows(*vectors):
    return torch.tensor(vectors, dtype=torch.float64)


def test_beta_zero_is_pcgrad():
    gradvac, pcgrad = GradVac(beta=0.0, seed=5), PCGrad(seed=5)
    for step in range(5):
        geo = geometry(draw("conflicting", 8, seed=step), step=step)
        assert torch.equal(gradvac.weights(geo), pcgrad.weights(geo))


def test_first_step_is_pcgrad():
    geo = geometry(draw("conflicting", 8))
    assert torch.equal(GradVac(beta=0.3).weights(geo), PCGrad().weights(geo))


@pytest.mark.parametrize("target", [-0.5, 0.0, 0.3, 0.5, 0.9])
def test_two_tasks_reach_the_target_cosine_exactly(target):
    g = rows(vector(0), vector(130, 5.0))
    method = GradVac(target=target, tasks=["t0"])
    weights = method.weights(geometry(g))[0]
    edited = weights[0] * g[0] + (weights[1] - 1) * g[1]  # t1 itself is not edited
    assert cosine(edited, g[1]) == pytest.approx(target, abs=1e-14)
    # Law of sines (eq. 4): the norm grows by sin(theta) / sin(gamma).
    ratio = math.sin(math.radians(130)) / math.sqrt(1 - target**2)
    assert float(edited.norm()) == pytest.approx(ratio, rel=1e-12)


def test_fixed_target_keeps_no_state_and_does_not_lower_cosines():
    method = GradVac(target=0.5)
    weights = method.weights(geometry(rows(vector(0), vector(50))))
    assert torch.equal(weights, torch.ones(1, 2, dtype=torch.float64))
    assert method.state_dict()["groups"] == []


def test_scale_of_the_other_gradient_leaves_the_edit_unchanged():
    method = trained(tasks=["t0"])
    g = draw("conflicting", 4, seed=99)
    scaled = g.clone()
    scaled[1:] *= torch.tensor([[1e-6], [1e6], [3.0]], dtype=torch.float64)
    edited = []
    for matrix in (g, scaled):
        w = copy_of(method, tasks=["t0"]).weights(geometry(matrix, step=99))[0]
        w[1:] -= 1  # what the unedited tasks contribute
        edited.append(w @ matrix)
    assert relative(edited[1], edited[0]) <= 1e-12


def test_no_active_pair_is_the_plain_sum():
    g = torch.eye(5, dtype=torch.float64) + 0.1
    weights = GradVac().weights(geometry(g))
    assert torch.equal(weights, torch.ones(1, 5, dtype=torch.float64))


def test_zero_gradient_is_skipped_and_counted_and_leaves_targets_alone():
    method = trained()
    before = method.targets(["g"], names("t", 4))[0]
    g = draw("conflicting", 4, seed=99)
    g[2] = 0
    weights = method.weights(geometry(g, step=99))
    after = method.targets(["g"], names("t", 4))[0]
    assert bool(weights.isfinite().all()) and weights[0, 2] == 1
    assert torch.equal(after[2], before[2]) and torch.equal(after[:, 2], before[:, 2])
    others = [(0, 1), (1, 0), (0, 3), (3, 0), (1, 3), (3, 1)]
    assert all(after[i, j] != before[i, j] for i, j in others)
    assert method.report()["skipped"].tolist() == [6]
    assert method.report()["comparisons"].tolist() == [6]


def test_all_gradients_zero():
    weights = GradVac().weights(geometry(torch.zeros(3, 4, dtype=torch.float64)))
    assert bool(weights.isfinite().all())


def test_gradient_projected_away_has_no_direction_to_compare():
    method = PCGrad(tasks=["t0"])
    for step in range(100):
        g = draw("independent", 3, seed=step)
        g[1] = -0.7 * g[0]  # rounded: what is left of t0 beside t1 is 1e-16 of it, not 0
        geo = geometry(g, step=step)
        method.weights(geo)
        t1_first = random_order(0, geo)("g", "t0") == ["t1", "t2"]
        assert method.report()["comparisons"].item() == (1 if t1_first else 2)


@pytest.mark.parametrize("error", [0.0, 1e-8])  # of the Gram matrix, which fp32 may leave
@pytest.mark.parametrize("target", ["adaptive", 0.0, 0.5])
def test_sets_of_nearly_parallel_gradients(target, error):
    generator = torch.Generator().manual_seed(0)
    method = GradVac(beta=1.0, target=target)
    for step in range(200):
        sign = torch.randint(2, (5, 1), generator=generator) * 2 - 1
        noise = torch.randn(5, 10, generator=generator, dtype=torch.float64)
        g = sign * (torch.ones(1, 10) + 10.0 ** -(8 + step % 10) * noise)
        geo = geometry(g, step=step)
        geo.gram.mul_(1 + error * torch.randn(5, 5, generator=generator, dtype=torch.float64))
        assert bool(method.weights(geo).isfinite().all())
        assert float(method.report()["targets"].abs().max()) <= 1


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("options", [{"target": 0.999}, {"beta": 1.0}, {"target": 0.0}])
def test_parallel_gradients_stay_finite_and_bounded(options, sign):
    method = GradVac(**options)
    g = torch.randn(1, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    g = torch.cat([g, sign * 7 * g])
    bound = 1 / math.sqrt(1 - 0.999**2)
    for step in range(5):
        total = method.weights(geometry(g, step=step))[0] @ g
        assert bool(total.isfinite().all())
        assert float(total.norm()) <= bound * float(g.norm(dim=1).sum())


def test_amplification_is_bounded_after_parallel_gradients():
    method = GradVac(beta=1.0, max_target=0.99)
    method.weights(geometry(rows(vector(0), vector(0)), step=0))  # targets are 1 now
    assert method.targets(["g"], ["t0", "t1"])[0, 0, 1] == 1.0  # stored without the cap
    g = rows(vector(0), vector(90))
    weights = method.weights(geometry(g, step=1))[0]
    assert float((weights @ g).norm()) <= 2 / math.sqrt(1 - 0.99**2)


def test_rescale_keeps_norms_and_direction():
    g = draw("conflicting", 3, seed=1)
    plain, rescaled = (GradVac(target=0.4, tasks=["t0"], rescale=r) for r in (False, True))
    edited = []
    for method in (plain, rescaled):
        w = method.weights(geometry(g))[0]
        w[1:] -= 1
        edited.append(w @ g)
    assert float(edited[1].norm()) == pytest.approx(float(g[0].norm()), rel=1e-12)
    assert float(edited[0].norm()) != pytest.approx(float(g[0].norm()), rel=1e-2)
    assert cosine(edited[0], edited[1]) == pytest.approx(1.0, abs=1e-12)


def test_permuting_the_tasks_permutes_the_weights():
    method = trained(n_tasks=6)
    g = draw("conflicting", 6, seed=99)
    shuffle = [4, 2, 0, 5, 1, 3]
    tasks = names("t", 6)
    one = copy_of(method).weights(geometry(g, tasks, step=99))
    shuffled = geometry(g[shuffle], tuple(tasks[i] for i in shuffle), step=99)
    two = copy_of(method).weights(shuffled)
    assert relative(two, one[:, shuffle]) <= 1e-12


def test_groups_together_or_one_at_a_time_in_any_order():
    groups = {f"g{k}": draw("conflicting", 5, seed=k) for k in range(4)}
    together, alone = GradVac(beta=0.1), GradVac(beta=0.1)
    for step in range(3):
        expected = together.weights(geometry(groups, step=step))
        for k in (2, 0, 3, 1):
            one = alone.weights(geometry({f"g{k}": groups[f"g{k}"]}, step=step))
            assert torch.equal(one[0], expected[k])
            assert torch.equal(alone.report()["edits"], together.report()["edits"][k : k + 1])
    tasks = names("t", 5)
    assert torch.equal(together.targets(groups, tasks), alone.targets(groups, tasks))


def test_sums_and_does_not_average():
    geo = geometry(torch.eye(4, dtype=torch.float64))
    assert PCGrad().weights(geo).tolist() == [[1.0] * 4]


@pytest.mark.parametrize("power", [-8, 8])
def test_common_scale_does_not_matter(power):
    g = draw("conflicting", 4, seed=3)
    w = trained().weights(geometry(g, step=99))
    assert relative(trained().weights(geometry(g * 10.0**power, step=99)), w) <= 1e-12


def test_norms_over_sixteen_decades():
    method = trained(n_tasks=4)
    g = draw("conflicting", 4, seed=3)
    scale = torch.tensor([1e-8, 1e-3, 1.0, 1e8], dtype=torch.float64)[:, None]
    plain = copy_of(method)
    plain.weights(geometry(g, step=99))
    method.weights(geometry(g * scale, step=99))
    assert method.report()["edits"].tolist() == plain.report()["edits"].tolist()
    tasks = names("t", 4)
    assert relative(method.targets(["g"], tasks), plain.targets(["g"], tasks)) <= 1e-12


def test_report_counts_pcgrad_edits_on_the_same_gradients():
    method = trained(n_tasks=6, compare_pcgrad=True)
    geo = geometry(draw("conflicting", 6, seed=99), step=99)
    method.weights(geo)
    pcgrad = PCGrad()
    pcgrad.weights(geo)
    assert torch.equal(method.report()["pcgrad_edits"], pcgrad.report()["edits"])
    assert method.report()["edits"].item() > pcgrad.report()["edits"].item() > 0


def test_resume_is_bit_equal():
    method = trained("conflicting")
    resumed = GradVac(beta=0.2, seed=77)  # the seed comes back with the state
    resumed.load_state_dict(method.state_dict())
    for step in range(20, 25):
        geo = geometry(draw("conflicting", 4, seed=step), step=step)
        assert torch.equal(method.weights(geo), resumed.weights(geo))
    tasks = names("t", 4)
    assert torch.equal(method.targets(["g"], tasks), resumed.targets(["g"], tasks))


def test_state_dict_is_a_copy():
    method = trained()
    state = method.state_dict()
    before = state["targets"].clone()
    method.weights(geometry(draw("conflicting", 4, seed=99), step=99))
    assert torch.equal(state["targets"], before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_gradient_names_its_task_and_changes_nothing(bad):
    method = trained()
    before = method.state_dict()["targets"]
    g = {"good": draw("shared", 4), "g": draw("shared", 4)}
    geo = geometry(g, step=7)
    geo.gram[1, 2, :] = geo.gram[1, :, 2] = bad
    with pytest.raises(GradientError, match=r"task 't2'.*group 'g'.*step 7"):
        method.weights(geo)
    assert torch.equal(method.state_dict()["targets"], before)
    assert method.state_dict()["groups"] == ["g"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beta": 1.5}, "beta is 1.5"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"max_target": 1.0}, "max_target is 1.0"),
        ({"target": 1.0}, "target is 1.0"),
        ({"target": "adaptiv"}, "target is 'adaptiv'"),
        ({"tasks": "fr-en"}, "tasks is 'fr-en'"),
    ],
)
def test_options_out_of_range(options, says):
    with pytest.raises(GradientError, match=says):
        GradVac(**options)


def test_state_that_does_not_fit_is_refused():
    state = trained().state_dict()
    state["tasks"] = state["tasks"][:-1]
    with pytest.raises(GradientError, match=r"1 groups and 3 tasks need float64 \[1, 3, 3\]"):
        GradVac().load_state_dict(state)


def test_geometry_that_does_not_fit_is_refused():
    gram, losses = torch.eye(2, dtype=torch.float64)[None], torch.zeros(2)
    with pytest.raises(GradientError, match="float32"):
        StepGeometry(gram.float(), losses, ("a", "b"), ("g",), 0)
    with pytest.raises(GradientError, match="found twice: a"):
        StepGeometry(gram, losses, ("a", "a"), ("g",), 0)
    with pytest.raises(GradientError, match="losses"):
        StepGeometry(gram, losses[:1], ("a", "b"), ("g",), 0)
