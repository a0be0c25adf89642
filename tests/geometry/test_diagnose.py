"""Numbers of a diagnosis against separate float64 backwards and the algebra of whole vectors."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import gradvac
from gradvac import GradVac, Joint, StepGeometry
from gradvac.errors import GradientError, NotFiniteError
from gradvac.methods import CATS, FAMO, MGDA, GradNorm, PCGrad, StaticWeights

SAMPLES = ["b", "a", "c", "a", "b", "a"]
TASKS = ("b", "a", "c")


def build(dropout=0.0):
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(dropout)) for _ in range(3)]
    return nn.ModuleDict({"layers": nn.ModuleList(layers)}).double()


def forward(model, x):
    for layer in model["layers"]:
        x = layer(x)
    return x


def mean_loss(model, rows):
    return (forward(model, rows["x"]) - rows["y"]).square().mean()


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    return {"x": x, "y": 3 * y, "note": "not a tensor"}


def vectors(model, seed=0):
    """Gradient of each task and layer as literal vectors, {layer: [K, P]}, and the losses."""
    data, rows = batch(seed), {}
    for n in range(3):
        rows[f"layers.{n}"] = []
    losses = []
    for task in TASKS:
        own = [n for n, t in enumerate(SAMPLES) if t == task]
        part = {"x": data["x"][own], "y": data["y"][own]}
        loss = mean_loss(model, part) * len(own) / 6
        losses.append(loss.detach())
        for n, layer in enumerate(model["layers"]):
            g = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
            rows[f"layers.{n}"].append(torch.cat([x.flatten() for x in g]))
    return {name: torch.stack(gs) for name, gs in rows.items()}, torch.stack(losses)


METHODS = {
    "gradvac": lambda: GradVac(beta=0.5, seed=2),
    "pcgrad": PCGrad,
    "mgda": MGDA,
    "gradnorm": lambda: GradNorm(learning_rate=0.3),
    "cats": lambda: CATS(update_every=1),
    "famo": FAMO,
    "mine": lambda: StaticWeights({"a": 2.0, "b": 0.5, "c": 1.0}),
}


def test_every_number_against_vectors():
    model = build()
    methods = {name: make() for name, make in METHODS.items()}
    d = gradvac.diagnose(model, batch(), SAMPLES, mean_loss, methods=methods)
    g, losses = vectors(model)
    whole = torch.cat(list(g.values()), 1)
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    cosine = lambda a, b: nn.functional.cosine_similarity(a, b, dim=-1)
    assert d.tasks == TASKS and d.groups == tuple(g)
    close(d.losses[0], losses)
    close(d.whole_model, cosine(whole[:, None], whole[None]))
    for k, rows in enumerate(g.values()):
        close(d.cosine[k], cosine(rows[:, None], rows[None]))
        close(d.norms[k], rows.norm(dim=1))
        negative = sum(float(rows[i] @ rows[j]) < 0 for i, j in ((0, 1), (0, 2), (1, 2)))
        assert d.conflicts[k] == negative
    assert 0 < d.conflicts.sum() < 9  # the batch has conflicts, and not only
    plain = whole.sum(0)
    shares = torch.tensor([2, 3, 1]).double() / 6
    geometry = StepGeometry(d.gram[0], losses, TASKS, d.groups, 0, shares)
    for name, make in METHODS.items():
        weights, effect = make().weights(geometry), d.effects[name]
        close(effect.weights, weights)
        parts = [w @ rows for w, rows in zip(weights, g.values(), strict=True)]
        update = torch.cat(parts)
        assert effect.cosine == pytest.approx(float(cosine(update, plain)), rel=1e-10)
        assert effect.norm_ratio == pytest.approx(float(update.norm() / plain.norm()), rel=1e-10)
        close(effect.alignment, cosine(update, whole))
        close(effect.change, cosine(update, whole) - cosine(plain, whole))
        for k, (part, rows) in enumerate(zip(parts, g.values(), strict=True)):
            close(effect.group_cosine[k], cosine(part, rows.sum(0)))
            close(effect.group_norm_ratio[k], part.norm() / rows.sum(0).norm())
    assert d.effects["joint"].cosine == pytest.approx(1) and set(d.effects) == {"joint", *METHODS}
    assert not methods["gradvac"].state_dict()["targets"].numel()  # a copy has learnt, not it


def test_several_steps_are_averaged_and_remembered():
    model, seeds = build(), iter(range(3))

    def losses():
        found, full = {}, batch(next(seeds))
        for task in TASKS:
            own = torch.tensor([t == task for t in SAMPLES])
            found[task] = mean_loss(model, {k: full[k][own] for k in "xy"}) * float(own.sum()) / 6
        return found

    d = gradvac.diagnose(model, losses, steps=3, methods={"gradvac": GradVac(beta=0.5)})
    each = [torch.cat(list(vectors(model, seed)[0].values()), 1) for seed in range(3)]
    cosines = [nn.functional.cosine_similarity(g[:, None], g[None], dim=-1) for g in each]
    torch.testing.assert_close(d.whole_model, torch.stack(cosines).mean(0))
    alone = GradVac(beta=0.5)
    steps = [StepGeometry(d.gram[n], d.losses[n], d.tasks, d.groups, n) for n in range(3)]
    weights = [alone.weights(geometry) for geometry in steps][-1]
    assert torch.equal(d.effects["gradvac"].weights, weights)
    assert not torch.equal(weights, PCGrad().weights(steps[-1]))  # as it is without memory


# -- nothing is changed -------------------------------------------------------------------------


class Noisy(nn.Module):
    """Dropout, BatchNorm and a counter: everything a forward pass can leave behind."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return self.b(nn.functional.dropout(self.norm(self.a(x)), 0.5, self.training))


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training, fails):
    torch.manual_seed(0)
    model = Noisy().train(training)
    model.norm.eval()
    model(torch.randn(6, 4)).sum().backward()
    model.b.bias.grad = None
    gradients = {name: p.grad for name, p in model.named_parameters()}
    values = {name: g.clone() for name, g in gradients.items() if g is not None}
    state = {name: x.clone() for name, x in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    random = torch.get_rng_state()

    def loss(model, rows):
        model.train()  # a careless function
        if fails and loss.calls:
            raise ZeroDivisionError
        loss.calls += 1
        return model(rows).square().mean()

    loss.calls = 0
    try:
        gradvac.diagnose(model, torch.ones(6, 4), ["a", "b"] * 3, loss)
        assert not fails
    except ZeroDivisionError:
        assert fails
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    for name, p in model.named_parameters():
        assert p.grad is gradients[name]
        assert p.grad is None or torch.equal(p.grad, values[name])
    with torch.no_grad():
        gradvac.diagnose(model.eval(), torch.ones(6, 4), SAMPLES, lambda m, x: m(x).square().mean())


# -- what it takes and prints -------------------------------------------------------------------


class Output(dict):
    """As Hugging Face models return."""


class HuggingFaceLike(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, inputs, labels=None):
        logits = self.layer(inputs)
        if labels is None:
            return Output(logits=logits)
        return Output(loss=nn.functional.cross_entropy(logits, labels), logits=logits)


def test_the_loss_of_a_model_that_returns_it():
    torch.manual_seed(0)
    model, x, labels = HuggingFaceLike(), torch.randn(6, 4), torch.tensor([0, 1, 1, 0, 1, 0])
    d = gradvac.diagnose(model, {"inputs": x, "labels": labels}, SAMPLES, granularity="whole_model")
    own = [n for n, t in enumerate(SAMPLES) if t == "a"]
    expected = nn.functional.cross_entropy(model.layer(x[own]), labels[own]) / 2  # 3 of 6 samples
    assert float(d.losses[0, 1]) == pytest.approx(expected.item())
    with pytest.raises(GradientError, match="returned a Output without a loss; give it labels, or"):
        gradvac.diagnose(model, {"inputs": x}, SAMPLES)


def numbers(line):
    return [float(word) for word in line.split()[1:]]


def test_it_prints_what_it_found():
    model = build()
    d = gradvac.diagnose(model, batch(), SAMPLES, mean_loss)
    lines = str(d).splitlines()
    assert lines[0] == "3 tasks, 3 parameter groups, 1 step"
    at = lines.index("Cosines of the task gradients, whole model")
    assert lines[at + 1].split() == list(TASKS)
    for line, row in zip(lines[at + 2 : at + 5], d.whole_model.tolist(), strict=True):
        assert numbers(line) == [round(x, 2) for x in row]
    for k, group in enumerate(d.groups):
        (line,) = [x for x in lines if x.split()[:1] == [group]]
        words = line.split()
        assert words[1:4] == [str(int(d.conflicts[k])), "of", "3"]
        assert [float(x) for x in words[5:]] == pytest.approx(d.norms[k].tolist(), rel=6e-3)
    assert set(d.effects) == {"joint", "gradvac", "pcgrad", "mgda", "gradnorm", "cats", "famo"}
    for name, effect in d.effects.items():
        (line,) = [x for x in lines if x.split()[:1] == [name]]
        shown = [effect.cosine, effect.norm_ratio, *effect.change, *effect.weights.mean(0)]
        assert numbers(line) == pytest.approx([float(x) for x in shown], abs=6e-3)


def test_it_is_one_line_in_a_notebook_and_all_of_it_in_json():
    d = gradvac.diagnose(build(), batch(), SAMPLES, mean_loss)
    assert repr(d).startswith(f"Diagnosis(tasks {', '.join(TASKS)}; 3 groups; ")
    assert f"{int(d.conflicts.sum())} of 9 pairs conflict; methods joint, gradvac, " in repr(d)
    assert len(repr(d)) < 200 and "\n" not in repr(d)
    found = json.loads(json.dumps(d.to_dict(), allow_nan=False))
    assert found["cosine"] == d.cosine.tolist() and found["norms"] == d.norms.tolist()
    assert found["effects"]["mgda"]["weights"] == d.effects["mgda"].weights.tolist()
    assert found["effects"]["mgda"]["cosine"] == d.effects["mgda"].cosine


def test_many_tasks_are_shown_by_their_extremes():
    model, names = build(), [f"t{n:02}" for n in range(14)]
    x = torch.randn(14, 4, generator=torch.Generator().manual_seed(1)).double()
    loss = lambda model, rows: (forward(model, rows) - 1).mean()
    d = gradvac.diagnose(model, x, names, loss)
    i, j = divmod(int(d.whole_model.argmin()), 14)
    lines = str(d).splitlines()
    at = next(n for n, line in enumerate(lines) if "lowest of 91 pairs" in line)
    first = lines[at + 1].replace(",", "").split()
    assert {first[0], first[1]} == {names[i], names[j]}
    assert float(first[2]) == round(float(d.whole_model.min()), 2)
    assert lines[at + 11] == "" and max(map(len, lines)) < 110


def test_a_method_that_cannot_be_used_is_named_and_the_others_shown():
    model = build()
    loss = lambda model, rows: forward(model, rows["x"]).mean() - 9  # negative: no logarithm
    d = gradvac.diagnose(model, batch(), SAMPLES, loss)
    assert "famo" in d.refused and "famo" not in d.effects and "mgda" in d.effects
    assert "famo cannot be used: the loss of task 'b' is -" in str(d)


def test_a_task_without_gradient_in_a_group_has_no_cosine_there():
    model = build()
    zero = lambda: {
        "a": forward(model, batch()["x"]).mean(),
        "b": model["layers"][0](batch()["x"]).mean(),
    }
    d = gradvac.diagnose(model, zero)
    assert d.cosine[2].isnan().tolist() == [[False, True], [True, True]]
    assert all(math.isfinite(e.cosine) for e in d.effects.values())
    assert " - " in str(d)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((torch.ones(6, 4),), "needs the task of each sample, or a function of losses"),
        ((torch.ones(6, 4), SAMPLES), "a batch that is a Tensor needs loss="),
        ((batch(), SAMPLES[:5], mean_loss), "tasks names 5 samples, .* batch have 6, 6"),
        ((lambda: {}, SAMPLES), "leave out tasks and loss"),
        ((lambda: {},), r"at least one accumulate\(\)"),
    ],
)
def test_what_does_not_fit_is_explained(arguments, says):
    with pytest.raises(GradientError, match=says):
        gradvac.diagnose(build(), *arguments)


def test_a_loss_that_is_not_finite_is_named():
    bad = batch()
    bad["y"][2] = math.nan  # of task c
    with pytest.raises(NotFiniteError, match="gradient of task 'c' is not finite"):
        gradvac.diagnose(build(), bad, SAMPLES, mean_loss, methods={"joint": Joint()})


def test_the_page_shows_what_it_prints(capsys):
    """Word for word; numbers as far as other processors round alike."""
    page = (Path(__file__).parents[2] / "docs" / "diagnose.md").read_text(encoding="utf-8")
    code, shown = (re.search(rf"```{k}\n(.*?)```", page, re.DOTALL)[1] for k in ("python", "text"))
    exec(compile(code, "diagnose.md", "exec"), {})
    found, expected = capsys.readouterr().out.split(), shown.split()
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a == b or float(a) == pytest.approx(float(b), abs=0.02)
