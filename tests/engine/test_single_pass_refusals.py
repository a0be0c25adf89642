import pytest
import torch
from torch import nn

from gradvac.engine import SinglePassEngine
from gradvac.errors import GradientError
from gradvac.methods import Joint
from tests.engine.partition import largest_error

D = 4
TASKS = ["a", "b", "a", "c", "b"]
X = torch.linspace(-1, 1, 5 * 3 * D, dtype=torch.float64).sin().view(5, 3, D)


def step(model, forward, tasks=TASKS, **options):
    """One step; p.grad must stay as it was if it is refused."""
    model = model.double()
    engine = SinglePassEngine(model, Joint())
    try:
        with engine.tasks(tasks, **options):
            engine.backward(forward(model))
    finally:
        assert all(p.grad is None for p in model.parameters())


def test_batch_norm_is_named():
    model = nn.Sequential(nn.Linear(D, D), nn.Flatten(0, 1), nn.BatchNorm1d(D))
    with pytest.raises(GradientError, match=r"module '2' \(BatchNorm1d\).*mixes samples.*per_task"):
        step(model, lambda m: m(X))


def test_batch_norm_in_eval_mode_is_exact():
    model = nn.Sequential(nn.Linear(D, D), nn.Flatten(0, 1), nn.BatchNorm1d(D), nn.Linear(D, 1))
    model = model.double().eval()
    losses = lambda: (model(X).view(5, 3), None)
    assert largest_error(model, losses, TASKS) < 1e-10


class Mixer(nn.Module):
    def __init__(self, mix):
        super().__init__()
        self.first, self.mix, self.last = nn.Linear(D, D), mix, nn.Linear(D, D)

    def forward(self, x):
        return self.last(self.mix(self.first(x)))


@pytest.mark.parametrize(
    ("mix", "name"),
    [
        (lambda x: x - x.mean(0), "mean"),
        (lambda x: x.softmax(0), "softmax"),
        (lambda x: x.transpose(0, 1) @ x.transpose(0, 1).mT @ x.transpose(0, 1), "matmul"),
        (lambda x: x[:3].sum() + x, "sum"),
        (lambda x: torch.einsum("btd,bsd->tsd", x, x), "einsum"),
        (lambda x: x.cumsum(0), "cumsum"),
        (lambda x: torch.corrcoef(x.flatten(0, 1)).mean() + x, "corrcoef"),
    ],
)
def test_what_mixes_samples_or_is_unknown_is_named_where_it_meets_a_parameter(mix, name):
    with pytest.raises(GradientError, match=rf"'linear' in module 'last'.*'{name}'.*per_task"):
        step(Mixer(mix), lambda m: m(X).sum(-1))


def test_an_operation_that_takes_the_samples_for_channels_is_refused():
    model = nn.Sequential(nn.Linear(D, D), nn.Conv1d(5, 5, 1))
    with pytest.raises(GradientError, match=r"'conv1d' in module '1'.*samples in its first"):
        step(model, lambda m: m(X[:, 0]).sum(-1))


def test_samples_met_at_another_place_are_refused():
    with pytest.raises(GradientError, match=r"different places"):
        step(Mixer(lambda x: x[:, :, None] + x.transpose(0, 1)[None]), lambda m: m(X).sum(-1)[:, 0])


def test_a_loss_across_samples_is_found_by_the_check():
    def contrastive(model):
        y = model(X).mean(1)
        return (y @ y.T).log_softmax(1).diagonal()

    with pytest.raises(GradientError, match=r"losses have a gradient at samples of other tasks"):
        step(nn.Sequential(nn.Linear(D, D)), contrastive)


class Hidden(torch.autograd.Function):
    """Uses a parameter where no function mode sees it."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return torch.mul(x.detach(), w.detach())

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g * w, (g * x).flatten(0, -2).sum(0)


def test_a_parameter_used_out_of_sight_is_named():
    class Scaled(nn.Linear):
        def forward(self, x):
            return Hidden.apply(super().forward(x), self.scale)

    model = Scaled(D, D)
    model.scale = nn.Parameter(torch.ones(D))
    with pytest.raises(GradientError, match=r"parameter 'scale' is used by an operation"):
        step(model, lambda m: m(X).sum(-1))


def test_a_hidden_operation_before_a_parameter_is_named():
    model = Mixer(lambda x: Hidden.apply(x.flip(0).cumsum(0), torch.ones(D, dtype=x.dtype)))
    with pytest.raises(GradientError, match=r"'linear' in module 'last'"):
        step(model, lambda m: m(X).sum(-1))


def test_losses_that_do_not_fit_are_explained():
    model = nn.Linear(D, D)
    for forward, message in (
        (lambda m: m(X).mean(), "one value per sample"),
        (lambda m: m(X).detach().sum(-1), "one value per sample"),
        (lambda m: m(X.view(3, 5, D)).sum(-1), "no tensor with 5 samples was given to the model"),
    ):
        with pytest.raises(GradientError, match=message):
            step(model, forward)
    with pytest.raises(GradientError, match="at least one sample"):
        step(model, lambda m: m(X), tasks=[])
    with pytest.raises(GradientError, match=r"positions lie in \[0, 7\]; 2 names allow 0 to 1"):
        step(model, lambda m: m(X), tasks=(torch.tensor([0, 7, 1, 0, 0]), ["a", "b"]))
    engine = SinglePassEngine(model, Joint())
    with pytest.raises(GradientError, match="needs a forward pass"):
        engine.backward(torch.ones(3))
    with pytest.raises(GradientError, match="at least one accumulate"):
        engine.combine()


def test_rows_that_contradict_the_batch_are_refused():
    model = nn.Linear(D, 1).double()
    engine = SinglePassEngine(model, Joint())
    with pytest.raises(GradientError, match="rows contradicts"), engine.tasks(TASKS):
        engine.backward(model(X[:, 0]).squeeze(1), torch.tensor([1, 0, 2, 3, 4]))
