"""Several packed rows in a batch: exact in one pass if attention keeps sequences apart in each."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradvac
from gradvac.engine import register_operation
from tests.engine.test_segments import KINDS, V, checkpointing, made

transformers = pytest.importorskip("transformers")

EXACT = 1e-10
LENGTHS = (3, 5, 2), (4, 6), (1, 9)
TASKS = ["fr", "hi", "fr", "tr", "hi", "hi", "fr"]


def rows(seed=0, lengths=LENGTHS):
    """Ids, position ids that begin again with each sequence, and the sequence of each token."""
    g = torch.Generator().manual_seed(seed)
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    segments = ((positions == 0).flatten().cumsum(0) - 1).view(positions.shape)
    return torch.randint(3, V, positions.shape, generator=g), positions, segments


def block(segments):
    """Which tokens see each other, ``[B, 1, T, T]``."""
    return (segments[:, :, None] == segments[:, None, :]).tril()[:, None]


def losses_of(model, ids, positions, **options):
    logits = model(input_ids=ids, position_ids=positions, **{"use_cache": False} | options).logits
    return F.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none")  # [B, T - 1]


def gram_by_hand(engine, losses, of_losses, order):
    """Gram matrices [G, K, K] from a forward and a backward pass for each task."""
    model, found = engine.model, []
    for task in order:
        model.zero_grad()
        own = torch.tensor([[name == task for name in row] for row in of_losses])
        losses()[own].sum().backward()
        found.append({id(p): 0 * p if p.grad is None else p.grad for p in model.parameters()})
    model.zero_grad()
    stacks = [
        torch.stack([torch.cat([g[id(p)].flatten() for p in group.parameters]) for g in found])
        for group in engine.groups
    ]
    return torch.stack([x @ x.T for x in stacks])


def error(engine, batch, tasks=TASKS, losses_of=losses_of, **options):
    """Largest error of a step's Gram matrices, relative to passes by hand."""
    ids, positions, segments = batch
    losses = lambda: losses_of(engine.model, ids, positions, **options)
    with engine.tasks(tasks, segments=segments):
        report = engine.backward(losses())
    of_losses = [[tasks[n] for n in row[:-1]] for row in segments.tolist()]
    expected = gram_by_hand(engine, losses, of_losses, report.tasks)
    return float((report.gram - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_in_one_pass(kind, attention):
    engine = gradvac.Engine(made(kind, attention), gradvac.Joint(), "all_matrix")
    other = (2, 2, 6), (9, 1), (5, 5)
    for seed, lengths in enumerate([LENGTHS, LENGTHS, other]):
        assert error(engine, rows(seed, lengths)) < EXACT
    assert not engine.refused


def test_rows_of_one_task_each_and_a_row_of_one_sequence():
    engine = gradvac.Engine(made("Llama"), gradvac.Joint())
    assert error(engine, rows(lengths=((4, 6), (10,))), ["fr", "fr", "hi"]) < EXACT
    assert error(engine, rows(lengths=((10,), (10,))), ["fr", "hi"]) < EXACT  # without a mask
    assert not engine.refused


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_exact_with_activation_checkpointing(attention):
    engine = checkpointing(attention)
    assert error(engine, rows()) < EXACT
    assert not engine.refused


@pytest.mark.parametrize("trained", ["k_proj", "v_proj", "norm", "embed"])
def test_exact_where_only_some_parameters_are_trained(trained):
    model = made("Llama", "eager")
    for name, p in model.named_parameters():
        p.requires_grad_(trained in name)
    engine = gradvac.Engine(model, gradvac.Joint())
    assert error(engine, rows()) < EXACT
    assert not engine.refused


def test_layers_with_biases_and_learned_positions():
    torch.manual_seed(0)
    shape = dict(n_positions=10, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
    config = transformers.GPT2Config(vocab_size=V, **shape)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    engine = gradvac.Engine(model, gradvac.Joint(), "all_matrix")
    assert error(engine, rows(), attention_mask=block(rows()[2])) < EXACT
    assert not engine.refused


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("before", [0, 2])
def test_a_leak_in_one_row_is_found(attention, before, caplog):
    engine = gradvac.Engine(made("Qwen3", attention), gradvac.Joint())
    apart = block(rows()[2])
    leak = apart.clone()
    leak[1, 0, 6, 2] = True  # tokens 6 and 2 are of one task in no other row but the last
    if attention == "eager":
        apart, leak = (
            torch.zeros_like(m, dtype=torch.float64).masked_fill(~m, torch.finfo(torch.float64).min)
            for m in (apart, leak)
        )
    for seed in range(before):
        assert error(engine, rows(seed), attention_mask=apart) < EXACT
        assert not engine.refused
    with caplog.at_level(logging.WARNING, "gradvac"):
        assert error(engine, rows(7), attention_mask=leak) < EXACT
    assert "tokens of different tasks see each other" in engine.refused
    assert "one backward pass per task from now on" in caplog.text
    assert error(engine, rows(8), attention_mask=apart) < EXACT


def test_a_mask_for_all_rows_must_suit_every_row():
    same = (3, 5, 2), (3, 5, 2), (3, 5, 2)
    tasks = ["fr", "hi", "tr"] * 3
    ids, positions, segments = rows(lengths=same)
    engine = gradvac.Engine(made("Llama"), gradvac.Joint())
    shared = block(segments)[:1]
    assert error(engine, (ids, positions, segments), tasks, attention_mask=shared) < EXACT
    assert not engine.refused
    batch = ids, *rows()[1:]
    assert error(engine, batch, attention_mask=shared) < EXACT
    assert "see each other" in engine.refused


def test_sequences_of_one_task_may_see_each_other_in_their_row():
    ids, positions, segments = rows()
    tasks = ["fr", "fr", "hi", "tr", "hi", "hi", "fr"]  # not the first two of another row
    joined = segments.where(segments != 1, 0)
    engine = gradvac.Engine(made("Llama"), gradvac.Joint())
    assert error(engine, (ids, positions, segments), tasks, attention_mask=block(joined)) < EXACT
    assert not engine.refused


class Layers(nn.Module):
    """Embeddings, something, and projections to a vocabulary."""

    def __init__(self, something):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.something, self.out = nn.Embedding(V, 6), something, nn.Linear(6, V)

    def forward(self, input_ids, position_ids=None, use_cache=None):
        logits = self.out(self.something(self.embed(input_ids)))
        return transformers.modeling_outputs.CausalLMOutput(logits=logits)


class Learned(nn.Module):
    """A function of ``[B, T, d]`` and of one parameter."""

    def __init__(self, func, *shape):
        super().__init__()
        self.func, self.weight = func, nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return self.func(x, self.weight)


@register_operation(dim=None)
def scaled(x, weight):
    return x * weight


KEPT = {
    "of positions": Learned(torch.add, 10, 6),
    "of rows": Learned(torch.mul, 3, 1, 6),
    "of tokens": Learned(torch.add, 3, 10, 6),
    "of all": Learned(torch.mul, 6),
    "einsum": Learned(lambda x, w: torch.einsum("btd,de->bte", x, w), 6, 6),
    "flattened": Learned(lambda x, w: (x.flatten(0, 1) @ w).view(x.shape), 6, 6),
    "derived": Learned(lambda x, w: x * w.exp().cumsum(0), 10, 6),
    "registered": Learned(scaled, 6),
    "norm": nn.LayerNorm(6),
    "rows in another order": Learned(lambda x, w: (x[[2, 0, 1]] * w)[[1, 2, 0]], 6),
}


@pytest.mark.parametrize("name", KEPT)
def test_operations_that_keep_tokens_apart(name):
    engine = gradvac.Engine(Layers(KEPT[name]).double(), gradvac.Joint(), "all_matrix")
    assert error(engine, rows()) < EXACT
    assert not engine.refused


MIXED = {
    "positions": lambda x, w: x + w * x.mean(1, keepdim=True),
    "rows": lambda x, w: x + w * x.mean(0, keepdim=True),
    "neighbours": lambda x, w: x + w * x.roll(1, 1),
    "rows by a product": lambda x, w: x + w * torch.einsum("btd,ctd->btd", x, x.detach()),
    "transposed": lambda x, w: (x.mT @ torch.ones(10, 10).to(x)).mT * w,
    "rows as positions": lambda x, w: x * w + x.reshape(10, 3, 6).transpose(0, 1),
}


@pytest.mark.parametrize("name", MIXED)
def test_operations_that_mix_tokens_fall_back(name):
    model = Layers(Learned(MIXED[name], 6)).double()
    engine = gradvac.Engine(model, gradvac.Joint(), "all_matrix")
    assert error(engine, rows()) < EXACT
    assert engine.refused


class Recurrent(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


@pytest.mark.parametrize(
    "layer",
    [Learned(lambda x, w: x * w + x[[1, 2, 0]], 6), Recurrent(6, 6, batch_first=True)],
    ids=["other rows", "recurrent"],
)
def test_a_fall_back_that_needs_the_token_of_each_loss(layer):
    engine = gradvac.Engine(Layers(layer).double(), gradvac.Joint(), "all_matrix")
    with pytest.raises(gradvac.GradientError, match="say by `rows` which sample each loss belongs"):
        error(engine, rows())
    assert engine.refused
    ids, positions, segments = rows()
    tokens = torch.arange(30).view(3, 10)[:, :-1].flatten()
    with engine.tasks(TASKS, segments=segments):
        report = engine.backward(losses_of(engine.model, ids, positions).flatten(), tokens)
    of_losses = [[TASKS[n] for n in row[:-1]] for row in segments.tolist()]
    losses = lambda: losses_of(engine.model, ids, positions)
    expected = gram_by_hand(engine, losses, of_losses, report.tasks)
    assert (report.gram - expected).abs().max() < EXACT * expected.abs().max()


def test_losses_with_the_token_of_each():
    engine = gradvac.Engine(made("Llama"), gradvac.Joint())
    ids, positions, segments = rows()
    counted = torch.rand(3, 9, generator=torch.Generator().manual_seed(0)) > 0.5
    tokens = torch.arange(30).view(3, 10)[:, :-1][counted]
    with engine.tasks(TASKS, segments=segments):
        losses = losses_of(engine.model, ids, positions)
        report = engine.backward(losses[counted], tokens)
    expected = gram_by_hand(
        engine,
        lambda: losses_of(engine.model, ids, positions) * counted,
        [[TASKS[n] for n in row[:-1]] for row in segments.tolist()],
        report.tasks,
    )
    assert (report.gram - expected).abs().max() < EXACT * expected.abs().max()
    with (
        pytest.raises(gradvac.GradientError, match="rows contradicts the samples"),
        engine.tasks(TASKS, segments=segments),
    ):
        losses = losses_of(engine.model, ids, positions)
        engine.backward(losses.flatten(), torch.arange(27))  # as if T were 9


def test_accumulation_with_other_batches():
    model = made("Llama")
    engine = gradvac.Engine(model, gradvac.Joint(), "whole_model")
    parts = [
        (rows(0), TASKS),
        (rows(1, ((4, 6),)), ["hi", "fr"]),  # one row
        (rows(2, ((10,), (10,))), ["tr", "tr"]),  # one task
    ]
    for (ids, positions, segments), tasks in parts:
        with engine.tasks(tasks, segments=segments):
            engine.accumulate(losses_of(model, ids, positions))
    report = engine.combine()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for (ids, positions, _), _ in parts:
        losses_of(model, ids, positions).sum().backward()
    for g, p in zip(found, model.parameters(), strict=True):
        assert (g - p.grad).abs().max() < EXACT
    assert report.tasks == ("fr", "hi", "tr") and not engine.refused


def test_inputs_of_another_shape():
    engine = gradvac.Engine(made("Llama"), gradvac.Joint())
    ids, _, segments = rows()
    with (
        pytest.raises(gradvac.GradientError, match=r"\[3, 9\]; its dimension 0 and 1 should hold"),
        engine.tasks(TASKS, inputs=[ids[:, 1:]], segments=segments),
    ):
        pass
