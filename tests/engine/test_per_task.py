import copy

import pytest
import torch
from torch import nn

from gradvac.engine import GRANULARITIES, PerTaskEngine
from gradvac.errors import GradientError
from gradvac.methods import GradVac, Joint, PCGrad, StaticWeights
from tests.methods.helpers import names, random_order, relative
from tests.reference.algorithm1 import Algorithm1

D, V = 6, 11


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear1, self.linear2, self.norm = nn.Linear(D, D), nn.Linear(D, D), nn.LayerNorm(D)

    def forward(self, x):
        return x + self.linear2(self.linear1(self.norm(x)).tanh())


class Side(nn.Module):
    def __init__(self, n_layers):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(n_layers))
        self.norm = nn.LayerNorm(D)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class TinyTranslator(nn.Module):
    """Names and tying of a translation Transformer; one table for source, target and softmax."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        self.encoder, self.decoder = Side(2), Side(1)

    def forward(self, source, target):
        memory = self.encoder(self.embedding(source)).mean(1, keepdim=True)
        return self.decoder(self.embedding(target) + memory) @ self.embedding.weight.T


def build(dtype=torch.float64):
    torch.manual_seed(0)
    return TinyTranslator().to(dtype)


def loss_of(model, step, task, seed=0):
    generator = torch.Generator().manual_seed(10_000 * seed + 100 * step + task)
    source, target, label = torch.randint(V, (3, 4, 5), generator=generator).unbind(0)
    return nn.functional.cross_entropy(model(source, target).flatten(0, 1), label.flatten())


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize(
    ("granularity", "n_tasks"),
    [(g, n) for g in GRANULARITIES for n in (1, 2, 3, 8)] + [("all_layer", 16)],
)
def test_thirty_training_steps_follow_algorithm1(granularity, n_tasks):
    model, tasks = build(), names("t", n_tasks)
    engine = PerTaskEngine(model, GradVac(beta=0.1), granularity)
    literal = Algorithm1(0.1, set(tasks))
    for step in range(30):
        expected = {group.name: {} for group in engine.groups}
        for i, task in enumerate(tasks):
            for group in engine.groups:
                g = torch.autograd.grad(loss_of(model, step, i), group.parameters)
                expected[group.name][task] = flat(g)
            engine.accumulate(task, loss_of(model, step, i))
        model.zero_grad()
        report = engine.combine()
        combined = literal.step(expected, random_order(0, report.geometry))
        for k, group in enumerate(engine.groups):
            assert relative(flat(p.grad for p in group.parameters), combined[group.name]) <= 1e-10
            assert report.edits[k] == literal.edits[group.name]
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [None, {"target": -1.0}])
def test_without_edits_it_is_plain_training(dtype, options):
    method = GradVac(**options) if options else Joint()
    model, tolerance = build(dtype), 1e-6 if dtype == torch.float32 else 1e-14
    losses = {f"t{i}": loss_of(model, 0, i) for i in range(3)}
    sum(losses.values()).backward(retain_graph=True)
    expected = flat(p.grad for p in model.parameters())
    model.zero_grad()
    report = PerTaskEngine(model, method).backward(losses)
    assert relative(flat(p.grad for p in model.parameters()), expected) <= tolerance
    assert report.edits.sum() == 0
    assert report.losses.tolist() == [loss.item() for loss in losses.values()]


def test_several_losses_of_one_forward():
    model = build()
    hidden = model.encoder(model.embedding(torch.arange(5)[None]))
    losses = {"a": hidden.square().sum(), "b": hidden.sin().sum(), "c": hidden[..., 0].sum()}
    PerTaskEngine(model, StaticWeights({"a": 1.0, "b": 2.0, "c": -0.0})).backward(losses)
    ours = [p.grad for p in model.encoder.parameters()]
    hidden = model.encoder(model.embedding(torch.arange(5)[None]))
    joint = hidden.square().sum() + 2 * hidden.sin().sum()
    expected = torch.autograd.grad(joint, list(model.encoder.parameters()))
    assert relative(flat(ours), flat(expected)) <= 1e-14
    assert model.decoder.layers[0].linear1.weight.grad is None  # no task used it


def test_micro_batches_add_up():
    model = build()
    engine = PerTaskEngine(model, PCGrad())
    for i in range(3):
        engine.accumulate(f"t{i}", loss_of(model, 0, i) + loss_of(model, 1, i))
    whole = engine.combine()
    expected = flat(p.grad for p in model.parameters())
    model.zero_grad()
    engine = PerTaskEngine(model, PCGrad())
    for micro in range(2):
        for i in range(3):
            engine.accumulate(f"t{i}", loss_of(model, micro, i))
    parts = engine.combine()
    assert relative(flat(p.grad for p in model.parameters()), expected) <= 1e-12
    assert relative(parts.gram, whole.gram) <= 1e-12
    assert torch.allclose(parts.losses, whole.losses, rtol=1e-14)


def test_what_a_task_does_not_use_has_gradient_zero_for_it():
    model = build()
    engine = PerTaskEngine(model, GradVac())
    for step in range(2):  # the second step meets memory the first one filled
        engine.accumulate("all", loss_of(model, step, 0))
        engine.accumulate(
            "encoder", model.encoder(torch.ones(1, D, dtype=torch.float64)).sin().sum()
        )
        report = engine.combine()
        decoder = report.groups.index("decoder.layers.0")
        assert report.gram[decoder, 1].tolist() == [0, 0]
        assert report.gram[decoder, 0, 0] > 0
        assert report.diagnostics["skipped"][decoder] == 2


def test_tied_parameters_carry_all_their_uses():
    # A peer's Gram matrix is off by 32% where one table serves source, target and softmax.
    model = build()
    engine = PerTaskEngine(model, Joint(), "whole_model")
    losses = [loss_of(model, 0, i) for i in range(2)]
    rows = [
        flat(torch.autograd.grad(x, list(model.parameters()), retain_graph=True)) for x in losses
    ]
    report = engine.backward({"a": losses[0], "b": losses[1]})
    rows = torch.stack(rows)
    assert torch.allclose(report.gram[0], rows @ rows.T, rtol=1e-12)


@pytest.mark.parametrize("scale", [2.0**16, 3000.0])
def test_loss_scale_is_divided_out(scale):
    model = build(torch.float32)
    plain, scaled = (PerTaskEngine(model, GradVac(beta=0.5)) for _ in range(2))
    for step in range(3):
        reports = []
        for engine, factor in ((plain, 1.0), (scaled, scale)):
            model.zero_grad()
            for i in range(3):
                engine.accumulate(f"t{i}", loss_of(model, step, i) * factor)
            reports.append((engine.combine(factor), flat(p.grad for p in model.parameters())))
        (one, expected), (two, gradient) = reports
        assert relative(gradient, expected) <= 1e-5
        assert relative(two.gram, one.gram) <= 1e-5
        assert torch.allclose(two.losses, one.losses, rtol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_is_named_and_nothing_moves(bad):
    model = build()
    engine = PerTaskEngine(model, GradVac(beta=0.5))
    for i in range(2):
        engine.accumulate(f"t{i}", loss_of(model, 0, i))
    engine.combine()
    gradients = [p.grad.clone() for p in model.parameters()]
    state = copy.deepcopy(engine.state_dict())

    engine.accumulate("t0", loss_of(model, 1, 0))
    engine.accumulate("t1", loss_of(model, 1, 1) + bad * model.decoder.norm.bias.sum())
    with pytest.raises(GradientError, match=r"task 't1'.*group 'decoder.layers.0' at step 1"):
        engine.combine()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert engine.state_dict()["step"] == state["step"] == 1
    assert torch.equal(engine.state_dict()["method"]["targets"], state["method"]["targets"])
    with pytest.raises(GradientError, match="accumulate"):  # the buffers are empty
        engine.combine()
    engine.accumulate("t0", loss_of(model, 1, 0))  # and training can go on
    assert engine.combine().step == 1


def test_targets_of_a_bfloat16_model_do_not_stall():
    # Kept in bfloat16, the moving average of a constant 0.8 stops at 0.586 (beta 0.01, 600 steps).
    p = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    engine = PerTaskEngine([("p", p)], GradVac(beta=0.01), "whole_model")
    direction = torch.tensor([0.8, 0.6], dtype=torch.bfloat16)
    for _ in range(600):
        report = engine.backward({"a": p[0] * 1, "b": (p * direction).sum()})
    cosine = float(direction[0]) / float(direction.double().norm())
    target = engine.method.targets(["whole_model"], ["a", "b"])[0, 0, 1]
    assert float(target) == pytest.approx(cosine * (1 - 0.99**600), rel=1e-9)
    assert p.grad.dtype == torch.bfloat16
    assert report.step == 599


def test_micro_batches_of_a_bfloat16_model_are_added_in_float32():
    p = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    engine = PerTaskEngine([("p", p)], Joint(), "whole_model")
    for _ in range(512):  # in bfloat16 256 + 1 is 256
        engine.accumulate("a", p.sum())
    assert engine.combine().gram.item() == 512.0**2
    assert p.grad.item() == 512.0


def test_resume_is_bit_equal():
    def train(model, engine, steps):
        for step in steps:
            model.zero_grad()
            for i in range(3):
                engine.accumulate(f"t{i}", loss_of(model, step, i))
            engine.combine()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
        return flat(model.parameters())

    model = build(torch.float32)
    engine = PerTaskEngine(model, GradVac(beta=0.3))
    train(model, engine, range(4))
    fresh_model = copy.deepcopy(model)
    fresh = PerTaskEngine(fresh_model, GradVac(beta=0.3))
    fresh.load_state_dict(engine.state_dict())
    assert torch.equal(train(model, engine, range(4, 8)), train(fresh_model, fresh, range(4, 8)))


def test_the_step_may_be_given():
    model = build()
    engine = PerTaskEngine(model, Joint())
    assert engine.backward({"a": loss_of(model, 0, 0)}, step=41).step == 41
    assert engine.backward({"a": loss_of(model, 0, 0)}).step == 42


def test_sparse_embedding_gradients():
    model = nn.Sequential(nn.Embedding(V, D, sparse=True), nn.Linear(D, 1))
    engine = PerTaskEngine(model, Joint())
    engine.accumulate("a", model(torch.tensor([1, 1, 3])).sum())
    engine.combine()
    assert model[0].weight.grad.norm(dim=1).nonzero().flatten().tolist() == [1, 3]


def test_data_parallel_wrappers_are_refused():
    distributed = torch.distributed
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(build())
        with pytest.raises(GradientError, match=r"in DistributedDataParallel.*\(model.module\)"):
            PerTaskEngine(nn.Sequential(wrapped), GradVac())
    finally:
        distributed.destroy_process_group()


def test_losses_that_cannot_be_used():
    model = build()
    engine = PerTaskEngine(model, GradVac())
    with pytest.raises(GradientError, match=r"task 'a' is \[2\]"):
        engine.accumulate("a", model.encoder.norm.bias[:2])
    with pytest.raises(GradientError, match=r"task 'a' .* requires_grad=False"):
        engine.accumulate("a", torch.tensor(1.0))
    with pytest.raises(GradientError, match="depends on none of the engine's parameters"):
        engine.accumulate("a", loss_of(build(), 0, 0))


def test_shares_reach_the_method_and_must_name_every_task():
    model = torch.nn.Linear(3, 1)
    engine = PerTaskEngine(model, Joint(), "whole_model")
    for task in ("b", "a"):
        engine.accumulate(task, model(torch.ones(2, 3)).sum())
    with pytest.raises(GradientError, match="shares have no entry for a"):
        engine.combine(shares={"b": 0.5})
    for task in ("b", "a"):
        engine.accumulate(task, model(torch.ones(2, 3)).sum())
    report = engine.combine(shares={"a": 0.25, "b": 0.75})
    assert report.geometry.shares is not None
    assert report.geometry.shares.tolist() == [0.75, 0.25]
