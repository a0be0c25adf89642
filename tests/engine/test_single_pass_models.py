"""The single pass on models it was not written for, against one backward per task."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradvac.engine import Engine
from gradvac.methods import StaticWeights
from tests.engine.partition import flat, largest_error, separate

transformers = pytest.importorskip("transformers")

EXACT = 1e-10
TASKS = ["a", "b", "c", "a", "c"]
V, PAD = 23, 0


def tokens(seed, n=5, length=6):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, V, (n, length), generator=generator)
    for i in range(1, n):
        ids[i, length - i % 3 :] = PAD
    return ids


def of_tokens(logits, labels):
    """Smoothed loss of every token, 0 at padding, [B, T]."""
    return F.cross_entropy(
        logits.transpose(1, 2), labels, reduction="none", ignore_index=PAD, label_smoothing=0.1
    )


COMMON = dict(vocab_size=V, pad_token_id=PAD, bos_token_id=1, eos_token_id=2)
ENCODER = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)


def bert(**changes):
    config = transformers.BertConfig(**COMMON, **ENCODER, max_position_embeddings=9, **changes)
    return transformers.BertForMaskedLM(config)


def xlm_roberta(**changes):
    config = transformers.XLMRobertaConfig(
        **COMMON, **ENCODER, max_position_embeddings=12, **changes
    )
    return transformers.XLMRobertaForMaskedLM(config)


def llama(**changes):
    config = transformers.LlamaConfig(
        **COMMON, **ENCODER, num_key_value_heads=1, attention_dropout=0.1, attention_bias=True,
        **changes,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2(**changes):
    config = transformers.GPT2Config(
        **COMMON, n_embd=8, n_layer=2, n_head=2, n_positions=9, **changes
    )
    return transformers.GPT2LMHeadModel(config)


def t5(**changes):
    config = transformers.T5Config(
        **COMMON, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, decoder_start_token_id=1,
        **changes,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def mt5(**changes):
    config = transformers.MT5Config(
        **COMMON, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, decoder_start_token_id=1,
        **changes,
    )  # fmt: skip
    return transformers.MT5ForConditionalGeneration(config)


SIDES = dict(d_model=8, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
             decoder_attention_heads=2, encoder_ffn_dim=12, decoder_ffn_dim=12,
             max_position_embeddings=16, decoder_start_token_id=1)  # fmt: skip


def marian(**changes):
    config = transformers.MarianConfig(**COMMON, **SIDES, attention_dropout=0.1, **changes)
    return transformers.MarianMTModel(config)


def m2m100(**changes):
    config = transformers.M2M100Config(
        **COMMON, **SIDES, **changes, encoder_layerdrop=0.0, decoder_layerdrop=0.0
    )
    return transformers.M2M100ForConditionalGeneration(config)


def mbart(**changes):
    config = transformers.MBartConfig(**COMMON, **SIDES, **changes)
    return transformers.MBartForConditionalGeneration(config)


def built(make, **changes):
    torch.manual_seed(0)
    model = make(**changes).double()
    for p in model.parameters():  # biases and relative positions do not start at zero
        nn.init.normal_(p, std=0.3)
    return model.train()


def encoder_losses(model):
    ids = tokens(1)

    def losses():
        logits = model(input_ids=ids, attention_mask=(ids != PAD).long()).logits
        return of_tokens(logits, tokens(2)), None

    return losses


def translation_losses(model, length=6):
    ids, target = tokens(1), tokens(2, length=length)

    def losses():
        out = model(input_ids=ids, attention_mask=(ids != PAD).long(), decoder_input_ids=target)
        return of_tokens(out.logits, tokens(3, length=length)), None

    return losses


@pytest.mark.parametrize("make", [bert, xlm_roberta, llama, gpt2])
def test_one_sided_models(make):
    model = built(make)
    assert largest_error(model, encoder_losses(model), TASKS) < EXACT


@pytest.mark.parametrize("make", [t5, mt5, marian, m2m100, mbart])
@pytest.mark.parametrize("length", [6, 5])  # 5: as many tokens as samples
def test_translation_models(make, length):
    model = built(make)
    assert largest_error(model, translation_losses(model, length), TASKS) < EXACT


@pytest.mark.parametrize("make", [bert, gpt2, t5, llama])
def test_eager_attention(make):
    model = built(make)
    model.set_attn_implementation("eager")
    losses = translation_losses if make is t5 else encoder_losses
    assert largest_error(model, losses(model), TASKS) < EXACT


def test_labels_make_the_decoder_input():
    model = built(marian)
    ids, labels = tokens(1), tokens(2)

    def losses():
        out = model(input_ids=ids, attention_mask=(ids != PAD).long(), labels=labels)
        return of_tokens(out.logits, labels), None

    assert largest_error(model, losses, TASKS) < EXACT


ONE_SIDED = [bert, xlm_roberta, llama, gpt2]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("make", [*ONE_SIDED, t5, mt5, marian, m2m100, mbart])
def test_checkpointed_and_tied_over_micro_batches_with_tasks_that_are_not_there(make):
    model = built(make, tie_word_embeddings=True)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    model.gradient_checkpointing_enable({"use_reentrant": False})
    losses = (encoder_losses if make in ONE_SIDED else translation_losses)(model)
    micro = [["a", "b", "a", "c", "a"], ["c", "a", "c", "c", "a"]]  # no b in the second
    expected = [separate(model, losses, tasks) for tasks in micro]
    engine = Engine(model, StaticWeights({"a": 1.0, "b": 3.0, "c": 0.5}), engine="single_pass")
    for tasks in micro:
        position = torch.tensor(["xaybc".index(t) for t in tasks])
        torch.manual_seed(1)
        with engine.tasks((position, list("xaybc"))):  # no x and no y at all
            engine.accumulate(*losses())
    report = engine.combine()
    assert report.tasks == ("a", "b", "c")
    for k, group in enumerate(engine.groups):
        rows = [sum(found[task][k] for found in expected if task in found) for task in "abc"]
        combined = rows[0] + 3 * rows[1] + rows[2] / 2
        found = flat([p.grad for p in group.parameters], group.parameters)
        assert float((found - combined).norm()) < EXACT * float(combined.norm())
        exact = torch.stack(rows) @ torch.stack(rows).T
        torch.testing.assert_close(report.gram[k], exact, rtol=EXACT, atol=EXACT * exact.max())
    assert not torch.overrides._get_current_function_mode_stack()


class Seq2Seq(nn.Module):
    """nn.Transformer with a tied softmax and learned positions."""

    def __init__(self, batch_first, norm_first=False):
        super().__init__()
        self.embedding = nn.Embedding(V, 8, padding_idx=PAD)
        self.positions = nn.Parameter(torch.zeros(9, 8))
        self.transformer = nn.Transformer(
            8, 2, 2, 2, 12, 0.1, batch_first=batch_first, norm_first=norm_first
        )
        self.batch_first = batch_first

    def embed(self, ids):
        along = 1 if self.batch_first else 0
        positions = self.positions[: ids.shape[along]]
        return self.embedding(ids) * 8**0.5 + (
            positions if self.batch_first else positions[:, None]
        )

    def forward(self, source, target):
        mask = nn.Transformer.generate_square_subsequent_mask(
            target.shape[1 if self.batch_first else 0], dtype=torch.float64
        )
        padding = source == PAD if self.batch_first else (source == PAD).T
        hidden = self.transformer(
            self.embed(source),
            self.embed(target),
            tgt_mask=mask,
            tgt_is_causal=True,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return hidden @ self.embedding.weight.T


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("length", [6, 5])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_torch_transformer(batch_first, norm_first, length):
    model = built(Seq2Seq, batch_first=batch_first, norm_first=norm_first)
    ids, target, labels = tokens(1), tokens(2, length=length), tokens(3, length=length)

    def losses():
        if batch_first:
            return of_tokens(model(ids, target), labels), None
        return of_tokens(
            model(ids.T.contiguous(), target.T.contiguous()).transpose(0, 1), labels
        ), None

    assert largest_error(model, losses, TASKS, batch_dim=0 if batch_first else 1) < EXACT


def test_attention_with_other_widths_of_keys_and_values():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(
        8, 2, 0.1, kdim=6, vdim=4, batch_first=True, add_bias_kv=True
    ).double()
    q, k, v = (torch.randn(5, t, d, dtype=torch.float64) for t, d in ((3, 8), (4, 6), (4, 4)))
    losses = lambda: (attention(q, k, v)[0].square().sum(-1), None)
    assert largest_error(attention, losses, TASKS) < EXACT


class Vision(nn.Module):
    """Convolutions, group normalisation, a class token, learned positions and a scale."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.norm = nn.GroupNorm(2, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.positions = nn.Parameter(torch.zeros(1, 5, 8))
        self.scale = nn.Parameter(torch.zeros(()))
        self.mixer = nn.Conv1d(8, 8, 3, padding=1)
        self.final = nn.RMSNorm(8)
        self.slope = nn.PReLU()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        y = self.norm(self.patches(x)).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(len(y), -1, -1), y], dim=1) + self.positions
        y = y + self.slope(self.mixer(y.mT)).mT
        y = self.final(y)[:, 0]
        return self.head(y) * self.scale.exp()


def test_convolutions_and_broadcast_parameters():
    model = built(Vision)
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    losses = lambda: (F.cross_entropy(model(x), torch.tensor([0, 1, 2, 1, 0]), reduction="none"),
                      None)  # fmt: skip
    assert largest_error(model, losses, TASKS) < EXACT


class Reused(nn.Module):
    """One layer several times, weights made of weights, in-place operations."""

    def __init__(self):
        super().__init__()
        self.layer, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.gate = nn.Parameter(torch.zeros(6))
        self.table = nn.Parameter(torch.zeros(4, 6))

    def forward(self, x):
        weight = self.layer.weight * self.gate.sigmoid()[:, None]  # free, not a view
        y = self.layer(x).relu_() * self.gate
        y += self.table.mean(0)
        y.sub_(self.gate)
        y = F.linear(y, weight, self.layer.bias) + F.linear(y, self.other.weight[:, :].T)
        first, second = self.table.chunk(2)
        y = y + (y @ first.T) @ second
        return checkpoint(self.other, y, use_reentrant=False) + torch.where(x > 0, self.gate, y)


def test_reused_parameters_and_what_is_made_of_them():
    model = built(Reused)
    x = torch.randn(5, 3, 6, dtype=torch.float64)
    assert largest_error(model, lambda: (model(x).square().sum(-1), None), TASKS) < EXACT


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("make", [t5, gpt2, Vision])
def test_bfloat16_autocast(make):
    model = built(make).float()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = torch.randn(5, 3, 4, 4)

    def losses():
        with torch.autocast("cpu", torch.bfloat16):
            if make is Vision:
                return F.cross_entropy(model(x), torch.zeros(5).long(), reduction="none"), None
            return (translation_losses if make is t5 else encoder_losses)(model)()

    assert largest_error(model, losses, TASKS) < 0.05
