"""What a preflight says is what the engine then does, and the model is as it was."""

import pytest
import torch
from torch import nn

import gradvac
from gradvac.geometry.preflight import Memory

TASKS = ["a", "b", "a", "c"]
X = torch.linspace(-1, 1, 4 * 64).sin().view(4, 64)


def net(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), *layers, nn.Linear(64, 64))


def losses(model, x):
    return model(x).square()


@pytest.mark.parametrize(
    ("layer", "options", "passes", "reason"),
    [
        (nn.Tanh(), {}, 1, ""),
        (nn.Tanh(), {"granularity": "whole_model", "passes": 2}, 2, ""),
        (nn.Tanh(), {"engine": "per_task"}, 3, ""),
        (nn.BatchNorm1d(64), {}, 3, "'batch_norm' in module '1' (BatchNorm1d)"),
    ],
)
def test_it_says_what_the_engine_does(layer, options, passes, reason, caplog):
    found = gradvac.preflight(net(layer), X, iter(TASKS), losses, **options)
    assert found.tasks == ("a", "b", "c") and found.backward_passes == passes
    assert found.single_pass == (not reason and "engine" not in options)
    assert found.reason.startswith(reason) and bool(found.reason) == bool(reason)
    assert not caplog.records  # the result says it
    engine = gradvac.Engine(net(layer), gradvac.Joint(), **options)
    with engine.tasks(TASKS):
        engine.backward(losses(engine.model, X))
    assert engine.refused == found.reason


def test_the_model_is_as_it_was():
    model = net(nn.BatchNorm1d(64), nn.Dropout(0.5))
    model(X).sum().backward()
    method = gradvac.GradVac()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    gradvac.preflight(model, X, TASKS, losses, method=method)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    pairs = zip(model.parameters(), gradients, strict=True)
    assert all(torch.equal(p.grad, g) for p, g in pairs)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert str(method.state_dict()) == str(gradvac.GradVac().state_dict())
    torch.optim.SGD(model.parameters()).step()  # no engine waits for it


def test_memory_is_that_of_the_tensors_that_live_at_a_time():
    x = torch.zeros(256)  # 1 KiB, made before
    with Memory() as memory:
        y = x + 1
        z = y * 2
        view = z.view(2, -1)
        assert memory.peak == 2048
        del y, z
        w = view + 1
        w += 1
        assert memory.peak == 2048
    del view, w


def test_the_peak_has_the_gradients_of_all_tasks():
    model = net(nn.Tanh())
    sizes = {}
    for name, options in {"whole": {}, "two passes": {"passes": 2}}.items():
        found = gradvac.preflight(model, X, TASKS, losses, granularity="whole_model", **options)
        sizes[name] = found.peak
    (size,) = found.groups.values()
    assert size == 4 * found.trained == 4 * 2 * (64 * 64 + 64)
    assert sizes["whole"] > 3 * size and sizes["whole"] > sizes["two passes"]
    assert found.plain > size
    text = str(found)
    assert text.startswith("one backward pass for all tasks") and "3: a, b, c" in text


class Classifier(nn.Module):
    """Returns logits for labels, as models of Hugging Face do."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(9, 8), nn.Linear(8, 5)

    def forward(self, input_ids, labels):
        return {"logits": self.head(self.table(input_ids))}


def test_a_batch_with_labels_needs_no_losses():
    ids = torch.arange(12).view(4, 3) % 9
    labels = (ids % 5).masked_fill(ids == 0, -100)
    batch = {"input_ids": ids, "labels": labels}
    assert gradvac.preflight(Classifier(), batch, TASKS).single_pass
    with pytest.raises(gradvac.GradientError, match="needs losses="):
        gradvac.preflight(Classifier(), ids, TASKS)
    with pytest.raises(gradvac.GradientError, match="do not fit a classification"):
        gradvac.preflight(Classifier(), {**batch, "labels": labels[:, 0]}, TASKS)
