"""Several sequences in one row: exact in one pass if attention keeps them apart, else K passes."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradvac
from gradvac.engine.task_names import tasks_of_tokens

transformers = pytest.importorskip("transformers")

V, EXACT = 23, 1e-10
SHAPE = dict(
    vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
KINDS = {"Llama": {}, "Qwen3": {}, "Mistral": {"sliding_window": 3}}
TASKS = ["fr", "hi", "fr", "tr", "hi"]


def made(kind, attention="sdpa", **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SHAPE | KINDS[kind] | options)
    config._attn_implementation = attention
    model = getattr(transformers, f"{kind}ForCausalLM")(config).double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


def packed(seed=0, lengths=(3, 5, 2, 4, 6)):
    """A row packed by transformers' collator, and the sequence of each token."""
    g = torch.Generator().manual_seed(seed)
    rows = [{"input_ids": torch.randint(3, V, (n,), generator=g).tolist()} for n in lengths]
    batch = transformers.DataCollatorWithFlattening()(rows)
    kept = {key: batch[key] for key in ("input_ids", "labels", "position_ids")}
    return kept, torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]


def losses_of(model, batch, **options):
    """Losses [N] and the token that each belongs to; packing is seen only without a cache."""
    given = {key: x for key, x in batch.items() if key != "labels"}
    logits = model(**given, **{"use_cache": False, **options}).logits[0, :-1]
    labels = batch["labels"][0, 1:]
    counted = labels != -100
    losses = F.cross_entropy(logits[counted], labels[counted], reduction="none")
    return losses, counted.nonzero()[:, 0]


def gram_by_hand(model, groups, batch, segments, tasks, order, **options):
    of_token = [tasks[n] for n in segments[0].tolist()]
    rows = []
    for task in order:
        model.zero_grad()
        losses, tokens = losses_of(model, batch, **options)
        own = torch.tensor([of_token[t] == task for t in tokens.tolist()])
        losses[own].sum().backward()
        rows.append({id(p): p.grad.flatten() for p in model.parameters() if p.requires_grad})
    model.zero_grad()
    stacks = [
        torch.stack([torch.cat([r[id(p)] for p in g.parameters]) for r in rows]) for g in groups
    ]
    return torch.stack([x @ x.T for x in stacks])


def step(engine, batch, segments, tasks=TASKS, **options):
    with engine.tasks(tasks, segments=segments):
        losses, tokens = losses_of(engine.model, batch, **options)
        return engine.backward(losses, tokens)


def error(engine, batch, segments, tasks=TASKS, **options):
    """Largest error of a step's Gram matrices, relative to separate backward passes."""
    report = step(engine, batch, segments, tasks, **options)
    groups = engine.groups
    expected = gram_by_hand(engine.model, groups, batch, segments, tasks, report.tasks, **options)
    return float((report.gram - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_in_one_pass(kind, attention):
    engine = gradvac.Engine(made(kind, attention), gradvac.Joint(), "all_matrix")
    for seed, lengths in enumerate([(3, 5, 2, 4, 6), (3, 5, 2, 4, 6), (1, 2, 3, 4, 5)]):
        assert error(engine, *packed(seed, lengths)) < EXACT
    assert not engine.refused


def checkpointing(attention):
    model = made("Llama", attention)
    model.activation_checkpointing_enable({"use_reentrant": False})
    return gradvac.Engine(model.train(), gradvac.Joint())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_exact_with_activation_checkpointing(attention):
    engine = checkpointing(attention)
    assert error(engine, *packed()) < EXACT
    assert not engine.refused


def test_exact_where_only_keys_are_trained():
    model = made("Llama", "eager")
    for name, p in model.named_parameters():
        p.requires_grad_("k_proj" in name)
    engine = gradvac.Engine(model, gradvac.Joint())
    assert error(engine, *packed()) < EXACT
    assert not engine.refused


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("before", [0, 3])
def test_a_batch_whose_sequences_see_each_other(attention, before, caplog):
    """Operations and sizes are those of the batches before; only the mask is another."""
    engine = gradvac.Engine(made("Qwen3", attention), gradvac.Joint())
    open_mask = torch.ones(20, 20, dtype=torch.bool).tril()[None, None]
    apart = packed()[1][0]
    block = open_mask & (apart[:, None] == apart[None, :])
    if attention == "eager":
        open_mask, block = (
            torch.zeros_like(m, dtype=torch.float64).masked_fill(~m, torch.finfo(torch.float64).min)
            for m in (open_mask, block)
        )
    for seed in range(before):
        assert error(engine, *packed(seed), attention_mask=block) < EXACT
        assert not engine.refused
    with caplog.at_level(logging.WARNING, "gradvac"):
        assert error(engine, *packed(7), attention_mask=open_mask) < EXACT
    assert "tokens of different tasks see each other" in engine.refused
    assert "one backward pass per task from now on" in caplog.text
    assert error(engine, *packed(8), attention_mask=block) < EXACT


def test_one_leak_between_two_tokens_is_found():
    engine = gradvac.Engine(made("Llama"), gradvac.Joint())
    batch, segments = packed()
    block = (segments.mT == segments).tril()[None]
    assert error(engine, batch, segments, attention_mask=block[None]) < EXACT
    assert not engine.refused
    leak = block.clone()
    leak[0, 9, 7] = True  # of fr and hi
    assert error(engine, batch, segments, attention_mask=leak[None]) < EXACT
    assert engine.refused


def test_sequences_of_one_task_may_see_each_other():
    engine = gradvac.Engine(made("Llama"), gradvac.Joint())
    batch, segments = packed()
    tasks = ["fr", "fr", "hi", "hi", "hi"]
    fr = segments < 2
    assert (
        error(engine, batch, segments, tasks, attention_mask=(fr.mT == fr).tril()[None, None])
        < EXACT
    )
    assert not engine.refused


def test_a_model_that_does_not_see_the_packing():
    """With a cache transformers ignores position ids that start again: attention has no mask."""
    engine = gradvac.Engine(made("Llama"), gradvac.Joint())
    batch, segments = packed()
    assert error(engine, batch, segments, use_cache=True, attention_mask=torch.ones(1, 20)) < EXACT
    assert engine.refused  # by the first operation of the cache


class Mean(nn.Module):
    """Mixes all tokens, in no attention."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(V, 8), nn.Linear(8, V)

    def forward(self, input_ids, position_ids=None, use_cache=None):
        x = self.embed(input_ids)
        logits = self.out(x + x.mean(1, keepdim=True))
        return transformers.modeling_outputs.CausalLMOutput(logits=logits)


def test_other_operations_that_mix_tokens_fall_back():
    engine = gradvac.Engine(Mean().double(), gradvac.Joint(), "whole_model")
    assert error(engine, *packed()) < EXACT
    assert "'mean'" in engine.refused or "add" in engine.refused


class Biased(nn.Module):
    """Attention with a learned mask."""

    def __init__(self):
        super().__init__()
        self.embed, self.bias = nn.Embedding(V, 8), nn.Parameter(torch.randn(20, 20))
        self.out = nn.Linear(8, V)

    def forward(self, input_ids, attention_mask, position_ids=None, use_cache=None):
        x = self.embed(input_ids)[:, None]
        mask = self.bias.masked_fill(~attention_mask, -torch.inf)
        x = F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
        return transformers.modeling_outputs.CausalLMOutput(logits=self.out(x[:, 0]))


def test_a_learned_mask():
    engine = gradvac.Engine(Biased().double(), gradvac.Joint(), "whole_model")
    batch, segments = packed()
    apart = (segments.mT == segments)[None, None]
    assert error(engine, batch, segments, attention_mask=apart) < EXACT
    assert not engine.refused
    leak = apart.clone()
    leak[..., 0, 19] = True
    assert error(engine, batch, segments, attention_mask=leak) < EXACT
    assert "see each other" in engine.refused


def test_no_mask_at_all():
    class Plain(Biased):
        def forward(self, input_ids, position_ids=None, use_cache=None):
            x = self.embed(input_ids)[:, None] * self.bias[0, 0]
            x = F.scaled_dot_product_attention(x, x, x, is_causal=True)
            return transformers.modeling_outputs.CausalLMOutput(logits=self.out(x[:, 0]))

    engine = gradvac.Engine(Plain().double(), gradvac.Joint(), "whole_model")
    assert error(engine, *packed()) < EXACT
    assert "it has no mask" in engine.refused


def test_accumulation_and_a_batch_of_one_task():
    model = made("Llama")
    engine = gradvac.Engine(model, gradvac.Joint(), "whole_model")
    parts = [(*packed(0), TASKS), (*packed(1, (4, 4)), ["hi", "hi"])]
    for batch, segments, tasks in parts:
        with engine.tasks(tasks, segments=segments):
            engine.accumulate(*losses_of(model, batch))
    report = engine.combine()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for batch, *_ in parts:
        losses_of(model, batch)[0].sum().backward()
    for g, p in zip(found, model.parameters(), strict=True):
        assert (g - p.grad).abs().max() < EXACT
    assert report.tasks == ("fr", "hi", "tr") and not engine.refused


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (torch.zeros(2, 5, 1, dtype=torch.int64), r"int64 \[2, 5, 1\]; it must be .*\[B, T\] or"),
        (torch.zeros(1, 5), r"float32 \[1, 5\]; it must be integers"),
        (torch.full((1, 5), 2), r"segments are in \[2, 2\]; 2 task names allow 0 to 1"),
        (torch.zeros(1, 0, dtype=torch.int64), "segments are missing"),
    ],
)
def test_wrong_segments(segments, message):
    with pytest.raises(gradvac.GradientError, match=message):
        tasks_of_tokens(torch.tensor([0, 1]), segments)
