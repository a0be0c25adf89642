import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradvac.engine import GRANULARITIES, PerTaskEngine, SinglePassEngine, local_collector
from gradvac.errors import NotFiniteError
from gradvac.methods import GradVac, Joint, PCGrad
from gradvac.translation.shapes import TransformerConfig
from gradvac.translation.transformer import Transformer
from tests.engine.partition import largest_error

TASKS = ["fr-en", "de-en", "hi-en", "fr-en", "hi-en", "hi-en", "fr-en"]
EXACT = 1e-10


def translator(**changes):
    torch.manual_seed(0)
    shape = dict(vocabulary_size=40, d_model=16, d_ffn=24, heads=2, encoder_layers=2,
                 decoder_layers=2, dropout=0.2, attention_dropout=0.1)  # fmt: skip
    return Transformer(TransformerConfig(**(shape | changes))).double()


def batch(n=7, source=5, target=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda length: torch.randint(4, 40, (n, length), generator=generator)
    source, target_in, target_out = draw(source), draw(target), draw(target)
    for i in range(1, n):
        source[i, 5 - i % 3 :] = 0
        target_in[i, 6 - i % 4 :] = target_out[i, 6 - i % 4 :] = 0
    return source, target_in, target_out


def losses_of(model, tensors, scale=1.0):
    def losses():
        loss, _, rows = model.token_losses(*tensors, label_smoothing=0.1)
        return loss * scale, rows

    return losses


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("length", [6, 7])  # 7: as many tokens as sentences
def test_the_shipped_transformer(norm, length):
    model = translator(norm=norm)
    assert largest_error(model, losses_of(model, batch(target=length)), TASKS) < EXACT


def test_one_task_one_sentence_and_all_tasks_apart():
    model = translator()
    for tasks in (["a"] * 7, ["a", "b", "c", "d", "e", "f", "g"], ["b"] * 6 + ["a"]):
        assert largest_error(model, losses_of(model, batch()), tasks) < EXACT
    assert largest_error(model, losses_of(model, batch(1)), ["a"]) < EXACT


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("method", [GradVac, PCGrad])
def test_ten_steps_equal_one_backward_per_task(granularity, method):
    models = [translator(), translator()]
    one, many = SinglePassEngine(models[0], method(), granularity), None
    many = PerTaskEngine(models[1], method(), granularity)
    for step in range(10):
        tensors = batch(seed=step)
        tasks = TASKS if step % 2 else [t.replace("hi", "de") for t in TASKS]  # one is absent
        reports = []
        for model, engine in zip(models, (one, many), strict=True):
            torch.manual_seed(step)
            if engine is one:
                with engine.tasks(tasks):
                    loss, _, rows = model.token_losses(*tensors, 0.1)
                    reports.append(engine.backward(loss / 30, rows))
            else:
                loss, _, rows = model.token_losses(*tensors, 0.1)
                shares = {
                    task: (loss / 30)[[tasks[i] == task for i in rows.tolist()]].sum()
                    for task in dict.fromkeys(tasks)
                }
                reports.append(engine.backward(shares))
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
        first, second = reports
        assert first.tasks == second.tasks and first.groups == second.groups
        torch.testing.assert_close(first.losses, second.losses, rtol=1e-10, atol=0)
        torch.testing.assert_close(first.gram, second.gram, rtol=1e-8, atol=1e-14)
        torch.testing.assert_close(first.weights, second.weights, rtol=1e-8, atol=0)
        assert first.edits.tolist() == second.edits.tolist()
        assert first.diagnostics.keys() == second.diagnostics.keys()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)


def test_positions_and_names_instead_of_a_name_per_sample():
    model = translator(dropout=0.0, attention_dropout=0.0)
    losses = losses_of(model, batch())
    reports = []
    position = torch.tensor([3, 1, 0, 3, 0, 0, 3])
    for tasks in (TASKS, (position, ["hi-en", "de-en", "ru-en", "fr-en"])):
        engine = SinglePassEngine(model, Joint())
        with engine.tasks(tasks):
            reports.append(engine.backward(*losses()))
    assert reports[1].tasks == ("hi-en", "de-en", "fr-en")  # ru-en has no sample
    order = [reports[1].tasks.index(task) for task in reports[0].tasks]
    torch.testing.assert_close(reports[0].gram, reports[1].gram[:, order][:, :, order])


def test_micro_batches_add_up_and_bring_new_tasks():
    model = translator(dropout=0.0, attention_dropout=0.0)
    first, second = batch(seed=1), batch(seed=2)
    engine = SinglePassEngine(model, GradVac())
    with engine.tasks(["a", "b"] * 3 + ["a"]):
        engine.accumulate(*losses_of(model, first)())
    with engine.tasks(["c", "b"] * 3 + ["c"]):
        engine.accumulate(*losses_of(model, second)())
    found = engine.combine()
    gradients = [p.grad for p in model.parameters()]
    joined = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    with engine.tasks(["a", "b"] * 3 + ["a"] + ["c", "b"] * 3 + ["c"]):
        expected = SinglePassEngine.backward(engine, *losses_of(model, joined)(), step=0)
    assert found.tasks == expected.tasks == ("a", "b", "c")
    torch.testing.assert_close(found.gram, expected.gram, rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(found.losses, expected.losses)
    fresh = SinglePassEngine(model, GradVac())
    with fresh.tasks(["a", "b"] * 3 + ["a"] + ["c", "b"] * 3 + ["c"]):
        fresh.backward(*losses_of(model, joined)())
    for p, g in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-13)


def test_loss_scale_is_divided_out():
    model = translator(dropout=0.0, attention_dropout=0.0)
    reports = []
    for scale in (1.0, 1024.0):
        engine = SinglePassEngine(model, GradVac())
        with engine.tasks(TASKS):
            report = engine.backward(*losses_of(model, batch(), scale)(), loss_scale=scale)
        reports.append((report, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(reports[0][0].gram, reports[1][0].gram, rtol=1e-12, atol=0)
    torch.testing.assert_close(reports[0][0].losses, reports[1][0].losses)
    for a, b in zip(reports[0][1], reports[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_the_loss_of_every_token_with_a_mask():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)).double()
    ids, labels = torch.randint(9, (2, 5, 3))
    mask = torch.rand(5, 3).round()
    tasks = ["a", "b", "a", "b", "b"]
    plain = lambda: F.cross_entropy(model(ids).mT, labels, reduction="none")
    engine = SinglePassEngine(model, Joint())
    with engine.tasks(tasks):
        report = engine.backward(plain(), mask=mask)
    expected = (plain() * mask).sum()
    assert float(report.losses.sum()) == pytest.approx(expected.item())
    for p, g in zip(
        model.parameters(), torch.autograd.grad(expected, list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(p.grad, g)


def test_samples_in_nested_arguments():
    class OfBatch(nn.Linear):
        def forward(self, batch):
            return super().forward(batch["inputs"][0]).tanh() @ self.weight

    torch.manual_seed(0)
    model = OfBatch(4, 4).double()
    batch = {"inputs": [torch.randn(7, 3, 4, dtype=torch.float64)], "name": "news"}
    assert largest_error(model, lambda: (model(batch).square().sum(-1), None), TASKS) < EXACT


@pytest.mark.parametrize("batch_first", [True, False])
def test_tokens_flattened_before_the_model(batch_first):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 9))
    model = model.double()
    ids, labels = torch.randint(9, (2, 7, 3))  # [B, T]
    tasks = [task for task in TASKS for _ in range(3)]
    if not batch_first:
        ids, labels = ids.T, labels.T
        tasks = TASKS * 3
    losses = lambda: (F.cross_entropy(model(ids.flatten()), labels.flatten(), reduction="none"),
                      None)  # fmt: skip
    assert largest_error(model, losses, tasks) < EXACT


def test_frozen_and_unused_parameters_get_no_gradient():
    model = translator()
    model.encoder.layers[0].requires_grad_(False)
    model.spare = nn.Linear(3, 3).double()
    assert largest_error(model, losses_of(model, batch()), TASKS) < EXACT
    assert model.spare.weight.grad is None
    assert model.encoder.layers[0].feed_forward.up.weight.grad is None


def test_a_gradient_that_is_not_finite_changes_nothing():
    model = translator()
    engine = SinglePassEngine(model, GradVac())
    with engine.tasks(TASKS):
        engine.backward(*losses_of(model, batch())())
    gradients = [p.grad for p in model.parameters()]
    before = engine.state_dict()
    with (
        pytest.raises(NotFiniteError, match="task 'de-en' is not finite"),
        engine.tasks(TASKS),
    ):
        loss, rows = losses_of(model, batch())()
        engine.backward(loss * torch.where(rows == 1, float("inf"), 1.0), rows)
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert engine.state_dict()["step"] == before["step"] == 1
    after = engine.state_dict()["method"]["targets"]
    torch.testing.assert_close(after, before["method"]["targets"])
    with engine.tasks(TASKS):
        assert engine.backward(*losses_of(model, batch())()).step == 1


def test_state_goes_on_where_it_was():
    model = translator()
    engine = SinglePassEngine(model, GradVac())
    with engine.tasks(TASKS):
        engine.backward(*losses_of(model, batch())())
    other = SinglePassEngine(model, GradVac(seed=5))
    other.load_state_dict(engine.state_dict())
    assert other.step == 1 and other.method.seed == 0


def test_bfloat16_autocast_differs_by_rounding_alone():
    model = translator(dropout=0.0, attention_dropout=0.0).float()

    def losses():
        with torch.autocast("cpu", torch.bfloat16):
            return losses_of(model, batch())()

    # Both round the same activations; gradients of biases are sums of bfloat16 numbers.
    assert largest_error(model, losses, TASKS) < 0.02


def test_float32_is_as_good_as_separate_backwards():
    model = translator(dropout=0.0, attention_dropout=0.0).float()
    assert largest_error(model, losses_of(model, batch()), TASKS) < 1e-5


def test_batches_of_one_task_are_not_split_and_may_hold_any_operation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    one, many = SinglePassEngine(model, GradVac()), PerTaskEngine(model, GradVac())
    for task in "abac":
        x = torch.randn(5, 3, dtype=torch.float64)
        with one.tasks([task] * 5):
            one.accumulate(model(x).square().squeeze(1))
        many.accumulate(task, model(x).square().sum())
    found, gradients = one.combine(), [p.grad for p in model.parameters()]
    expected = many.combine()
    torch.testing.assert_close(found.gram, expected.gram)
    torch.testing.assert_close(found.losses, expected.losses)
    for p, g in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, g)


def test_a_table_that_is_only_looked_up_costs_the_rows_looked_up():
    torch.manual_seed(0)
    rows = 3_000_000  # K x rows x 4 would be 192 MB
    model = nn.Sequential(nn.Embedding(rows, 4, padding_idx=7), nn.Linear(4, 2)).double()
    ids = torch.randint(rows, (4, 6))
    ids[0, :2] = 7
    ids[1, 3] = ids[0, 4] = ids[0, 5]
    tasks = ["a", "b", "a", "c"]
    losses = lambda: (model(ids).square().sum(-1), None)
    engine = SinglePassEngine(model, PCGrad())
    with engine.tasks(tasks):
        report = engine.backward(*losses())
    found = [p.grad for p in model.parameters()]
    assert engine._single_pass.collector.pool.numel() < 1000
    reference = PerTaskEngine(model, PCGrad())
    loss, _ = losses()
    expected = reference.backward({"a": loss[[0, 2]].sum(), "b": loss[1].sum(), "c": loss[3].sum()})
    torch.testing.assert_close(report.gram, expected.gram)
    for p, g in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(p.grad, g)


def test_a_table_whose_rows_reach_no_loss_gets_no_gradient():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare, self.out = (
                nn.Embedding(9, 4),
                nn.Embedding(9, 4),
                nn.Linear(4, 1),
            )

        def forward(self, ids):
            self.spare(ids)
            return self.out(self.used(ids)).squeeze(-1)

    torch.manual_seed(0)
    model = Spare().double()
    engine = SinglePassEngine(model, GradVac(), granularity="whole_model")
    with engine.tasks(["a", "b", "a"]):
        engine.backward(model(torch.randint(9, (3, 5))))
    assert model.spare.weight.grad is None and model.used.weight.grad is not None


def test_memory_is_that_of_the_groups_the_backward_is_passing(monkeypatch):
    monkeypatch.setattr(local_collector, "HELD", 0)  # else all of so small a model

    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(
                nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16)) for _ in range(20)
            )

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    model = Tower()
    engine = SinglePassEngine(model, GradVac())
    with engine.tasks(["a", "b", "c"]):
        engine.backward(model(torch.randn(3, 16)))
    layer = sum(p.numel() for p in model.layers[0].parameters())
    assert engine._single_pass.collector.pool.numel() <= 3 * 2 * layer
    assert all(p.grad is not None for p in model.parameters())
