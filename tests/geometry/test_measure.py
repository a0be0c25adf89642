"""A measurement equals separate backwards in float64, on our Transformer and on Hugging Face's."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradvac.errors import GradientError
from gradvac.geometry.measure import blocks, measure, measure_seq2seq
from gradvac.geometry.record import GramRecord
from gradvac.geometry.similarity import mean_similarity
from gradvac.translation.shapes import TransformerConfig
from gradvac.translation.transformer import Transformer

CONFIG = TransformerConfig(
    30, d_model=8, d_ffn=12, heads=2, encoder_layers=1, decoder_layers=1, dropout=0.5
)


def batch(seed: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    source, target = (torch.randint(1, 30, (size, 5), generator=random) for _ in range(2))
    return source, torch.cat([torch.full((size, 1), 2), target[:, :-1]], 1), target


def gradient(model: nn.Module, loss: torch.Tensor) -> dict[str, np.ndarray]:
    """By name, from one ordinary backward."""
    model.zero_grad()
    loss.backward()
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return {n: g.flatten().numpy().copy() for n, g in trained.items()}


@pytest.mark.parametrize("hold", [1, 500, 10**6])
def test_it_equals_one_ordinary_backward_per_task_with_dropout_off(hold: int) -> None:
    torch.manual_seed(0)
    model = Transformer(CONFIG).double()
    batches = {"fr-en": [batch(1, 3), batch(2, 4)], "en-hi": [batch(3, 2)]}

    def losses(task: str):
        tokens = sum(b[2].numel() for b in batches[task])
        return lambda: (model.token_losses(*b)[0].sum() / tokens for b in batches[task])

    frame = measure(model, {task: losses(task) for task in batches}, step=40, hold=hold)

    model.eval()
    expected = {
        task: gradient(
            model,
            torch.cat([model.token_losses(*b)[0] for b in own]).mean(),
        )
        for task, own in batches.items()
    }
    assert (frame.step, frame.tasks) == (40, ("fr-en", "en-hi"))
    assert set(frame.groups) == set(expected["fr-en"])
    for k, name in enumerate(frame.groups):
        rows = np.stack([expected[task][name] for task in frame.tasks])
        assert frame.gram[k] == pytest.approx(rows @ rows.T, rel=1e-10, abs=1e-18)


def test_no_pass_holds_more_numbers_than_allowed_save_for_one_parameter() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 25), nn.Linear(25, 1))
    sizes = [[p.numel() for _, p in block] for block in blocks(model, 2, hold=60)]
    assert sizes == [[16, 4], [100], [25], [25, 1]]  # times two gradients
    assert len(blocks(model, 2)) == 1


def test_it_leaves_model_modes_and_gradients_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 1))
    model[0].eval()
    x = torch.ones(2, 3)
    model(x).sum().backward()
    gradients = [p.grad for p in model.parameters()]
    before = [p.clone() for p in model.parameters()]
    measure(model, {"a": lambda: [model(x).sum()]})
    assert [m.training for m in model.modules()] == [True, False, True, True]
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_task_without_sentences_is_named() -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(GradientError, match="'b' has no sentences"):
        measure(model, {"a": lambda: [model(torch.ones(1, 2)).sum()], "b": lambda: []})


def marian() -> nn.Module:
    from transformers import MarianConfig, MarianMTModel

    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 12)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    config = MarianConfig(vocab_size=30, d_model=8, forced_eos_token_id=None, **sizes, **ids)
    return MarianMTModel(config)


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=30, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2)
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of the library
@pytest.mark.parametrize("build", [marian, t5])
def test_a_hugging_face_model_is_measured_and_its_frames_are_read_as_any_other(
    build, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library, about itself
        torch.manual_seed(0)
        model = build().double()
    tasks = {"fr-en": (3, 2), "en-fr": (4,), "hi-en": (2, 2)}
    batches = {}
    for n, (task, sizes) in enumerate(tasks.items()):
        batches[task] = []
        for m, size in enumerate(sizes):
            source, _, labels = batch(10 * n + m, size)
            labels[0, 3:] = -100
            own = {"input_ids": source, "attention_mask": torch.ones_like(source), "labels": labels}
            batches[task].append(own)

    record = GramRecord(tmp_path)
    record.append(measure_seq2seq(model, batches, step=7))
    record.append(measure_seq2seq(model, batches, "parameter_kind", step=8, hold=2000))

    model.eval()
    rows = []
    for own in batches.values():
        parts = [(model(**b).logits.flatten(0, 1), b["labels"].flatten()) for b in own]
        logits, labels = (torch.cat(p) for p in zip(*parts, strict=True))
        kept = labels != -100
        rows.append(gradient(model, F.cross_entropy(logits[kept], labels[kept])))
    whole = np.stack([np.concatenate(list(r.values())) for r in rows])
    unit = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    for frame in record:
        assert frame.gram.sum(0) == pytest.approx(whole @ whole.T, rel=1e-8)
        found = mean_similarity([frame])
        assert found is not None
        assert found.whole_model == pytest.approx(unit @ unit.T, abs=1e-8)
    assert "decoder.cross_attention.q" in frame.groups
