"""Routing by language on cases worked by hand, against the plain model, and in a search."""

import math

import pytest
import torch
from torch import nn

from gradvac.translation.clsr import CLSRTransformer, Route, Routing, make_transformer
from gradvac.translation.shapes import TransformerConfig
from gradvac.translation.transformer import Transformer

D, HIDDEN, TAGS = 8, 3, (4, 5, 6)
SIZES = dict(d_model=D, d_ffn=12, heads=2, encoder_layers=2, decoder_layers=1, dropout=0.0)


def config(**changes) -> TransformerConfig:
    return TransformerConfig(30, **SIZES, clsr_tags=TAGS, clsr_hidden=HIDDEN, **changes)


@pytest.fixture
def model() -> CLSRTransformer:
    torch.manual_seed(0)
    made = make_transformer(config())
    assert isinstance(made, CLSRTransformer)
    return made.eval()


@pytest.fixture
def batch():
    """Three sentences to two languages, padded."""
    source = torch.tensor([[5, 9, 10, 3], [4, 11, 3, 0], [5, 12, 3, 0]])
    target = torch.tensor([[2, 13, 14], [2, 15, 0], [2, 16, 17]])
    return source, target


@pytest.fixture
def route():
    """G(x) = 2 relu(x_0) - 1; the shared projection triples, that of the language negates."""
    sizes = TransformerConfig(9, 2, 4, 1, 1, 1, clsr_tags=(4,), clsr_hidden=1)
    own, shared = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    routing = Routing()
    routing.language_B = torch.tensor([0])
    routing.token_BT = torch.tensor([[True, True, False]])
    made = Route(sizes, routing, nn.ModuleList([own]))
    with torch.no_grad():
        made.up.weight.copy_(torch.tensor([[1.0, 0.0]]))
        made.down.weight.fill_(2.0)
        made.up.bias.zero_()
        made.down.bias.fill_(-1.0)
        own.weight.copy_(-torch.eye(2))
        shared.weight.copy_(3 * torch.eye(2))
    x = torch.tensor([[[3.0, 9.0], [0.25, 9.0], [-7.0, 9.0]]])  # G = 5, -0.5, -1
    y = torch.tensor([[[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]])
    return made, routing, x, y, shared


def test_gates_are_hard_outside_training(route):
    made, _, x, y, shared = route
    out = made.eval()(x, y, shared)
    assert out.tolist() == [[[-1.0, -2.0], [3.0, 6.0], [3.0, 6.0]]]


def sigmoid(g: float) -> float:
    return 1 / (1 + math.exp(-g))


def test_gates_are_soft_in_training_and_counted_without_padding(route):
    made, routing, x, y, shared = route
    out = made.train()(x, y, shared)
    gates = [sigmoid(5), sigmoid(-0.5), sigmoid(-1)]
    assert out[0, :, 0].tolist() == pytest.approx([-g + 3 * (1 - g) for g in gates])
    assert float(routing.mean().detach()) == pytest.approx((gates[0] + gates[1]) / 2)


def test_noise_is_added_to_the_score(route):
    made, routing, x, y, shared = route
    routing.alpha = 2.5
    torch.manual_seed(7)
    out = made.train()(x, y, shared)
    torch.manual_seed(7)
    noise = torch.randn(1, 3, 1).flatten().tolist()
    gates = [sigmoid(g + 2.5 * n) for g, n in zip([5, -0.5, -1], noise, strict=True)]
    assert out[0, :, 0].tolist() == pytest.approx([-g + 3 * (1 - g) for g in gates], abs=1e-5)


@pytest.mark.parametrize(("progress", "alpha"), [(0, 0), (0.1, 0.5), (0.5, 2.5), (1, 5), (2, 5)])
def test_the_noise_grows_linearly_to_5(model, progress, alpha):
    model.begin_step(progress)
    assert model.routing.alpha == alpha


def test_the_budget_loss_is_the_distance_of_the_mean_gate(batch):
    torch.manual_seed(0)
    model = make_transformer(config(clsr_budget=0.3)).train()
    with torch.no_grad():  # every gate sigmoid(1) = 0.731...
        for module in model.modules():
            if isinstance(module, Route):
                module.down.weight.zero_()
                module.down.bias.fill_(1.0)
    model.begin_step(0)
    model.token_losses(batch[0], batch[1][:, :-1], batch[1][:, 1:])
    # 2 encoder layers of 2 gates, 1 decoder layer of 3; 10 source and 6 target tokens in.
    assert int(torch.stack(model.routing.tokens).sum()) == 4 * 10 + 3 * 6
    assert float(model.auxiliary_loss().detach()) == pytest.approx(sigmoid(1) - 0.3, abs=1e-6)
    assert model.routing.gates == []


def close_gates(model: Transformer) -> None:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Route):
                module.down.bias.fill_(-1e9)


@pytest.mark.parametrize("training", [False, True])
def test_with_all_gates_closed_it_is_the_shared_model(model, batch, training):
    """A plain Transformer whose feed-forward has the shared projection multiplied in."""
    close_gates(model)
    plain = Transformer(TransformerConfig(30, **SIZES))
    tensors = {k: v for k, v in model.state_dict().items() if k in plain.state_dict()}
    for name, value in model.state_dict().items():
        if name.endswith("feed_forward.shared.weight"):
            down = name.replace("shared.weight", "down")
            for part in ("weight", "bias"):
                tensors[f"{down}.{part}"] = value @ model.state_dict()[f"{down}.{part}"]
    plain.load_state_dict(tensors)
    both = (model.train(training), plain.train(training))
    ours, theirs = (m.logits(m(*batch)) for m in both)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_its_parameters_are_counted_by_hand(model):
    plain = Transformer(TransformerConfig(30, **SIZES))
    count = lambda m: sum(p.numel() for p in m.parameters())
    sublayers, feed_forwards = 2 * 2 + 3, 3
    gates = sublayers * (D * HIDDEN + HIDDEN + HIDDEN + 1)
    languages = 2 * len(TAGS) * D * D
    assert count(model) - count(plain) == gates + feed_forwards * D * D + languages


def test_a_mixed_batch_is_its_sentences_one_by_one(model, batch):
    source, target = batch
    mixed = model(source, target)
    for n in range(3):
        alone = model(source[n : n + 1], target[n : n + 1])
        assert torch.allclose(mixed[n], alone[0], atol=1e-5)
    other = torch.cat([torch.tensor([[6], [6], [6]]), source[:, 1:]], 1)
    assert not torch.allclose(mixed, model(other, target), atol=1e-2)


def test_step_by_step_it_says_what_it_says_at_once(model, batch):
    source, target = batch
    target = target.masked_fill(target == 0, 18)
    whole = model.logits(model(source, target))
    cache = model.start(source)
    for t in range(target.shape[1]):
        assert torch.allclose(model.step(target[:, t], cache), whole[:, t], atol=1e-5)
    # Two hypotheses each, of the sentences 2 and 0: the languages go with the sentences.
    kept = torch.tensor([2, 0])
    cache.reorder(kept.repeat_interleave(2), kept)
    again = model.step(torch.full((4,), 19), cache)
    longer = torch.cat([target, torch.full((3, 1), 19)], 1)
    expected = model.logits(model(source, longer))[kept, -1].repeat_interleave(2, 0)
    assert torch.allclose(again, expected, atol=1e-5)


def test_unknown_languages_are_refused(model, batch):
    with pytest.raises(ValueError, match="asks for a language that this model has no matrix of"):
        model(batch[0] + 10, batch[1])
