"""Functions of other packages, known by name: stand-ins of the same signatures, on a CPU.

Signatures of bitsandbytes 0.50, Liger 0.8 and flash-attention 2.8, their sources read in November
2026. A stand-in whose original writes to what it saved does so too.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradvac import Engine, Joint
from gradvac.engine import SinglePassEngine
from tests.engine.partition import flat, found_by, worst_error

D, HEADS, EXACT = 8, 2, 1e-10
TASKS = ["b", "a", "c", "b"]
IDS = torch.tensor([[1, 2, 3], [4, 5, 6], [1, 4, 0], [2, 2, 5]])


def of(package, name, forward, backward):
    """A custom autograd function as that package would have it."""
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), {**methods, "__module__": f"{package}.ops"})


def by_autograd(package, name, run, once=False):
    """A stand-in that runs ``run`` again to differentiate it; ``once`` if it spoils its inputs."""

    real = lambda x: isinstance(x, torch.Tensor) and x.is_floating_point()

    def forward(ctx, *args):
        ctx.args = [x.clone() if once and real(x) else x for x in args]
        return run(*args)

    def backward(ctx, *gradients):
        given = [x.detach().requires_grad_() if real(x) else x for x in ctx.args]
        with torch.enable_grad():
            out = run(*given)
        outs = out if isinstance(out, tuple) else (out,)
        pairs = [(y, g) for y, g in zip(outs, gradients, strict=True) if y is not None]
        leaves = [x for x in given if real(x)]
        ys, dys = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(ys, leaves, dys, allow_unused=True))
        result = [next(found) if real(x) else None for x in given]
        for x in ctx.args if once else ():
            if real(x):
                x.data.fill_(7.0)
        return tuple(result)

    return of(package, name, forward, backward)


def rms(x, w, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * (w + offset)


def added_rms(x, r, w, eps, offset=0.0, casting_mode="llama", in_place=False):
    return rms(x + r, w, eps, offset), x + r


def turned(x, cos, sin):
    half = torch.cat([-x[..., D // 4 :], x[..., : D // 4]], -1)
    return x * cos[:, None] + half * sin[:, None]


def rope(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    return turned(q, cos, sin), turned(k, cos, sin)


def attention(q, k, v, dropout_p, softmax_scale, causal, *rest):  # [B, T, heads, d]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)


def varlen(q, k, v, ends_q, ends_k, longest_q, longest_k, dropout_p, scale, causal, *rest):
    parts = []
    for n in range(len(ends_q) - 1):
        rows = slice(int(ends_q[n]), int(ends_q[n + 1]))
        parts.append(attention(q[None, rows], k[None, rows], v[None, rows], 0.0, None, causal)[0])
    return torch.cat(parts)


def four_bit(a, b, out=None, bias=None, quant_state=None):
    return F.linear(a, b.to(a.dtype).view(quant_state) / 10, bias)


def losses_of(logits, target, weight, ignore_index=-100, lse=0.0, smoothing=0.0, reduction="mean",
              softcap=None, z=False, accuracy=False, predicted=False):  # fmt: skip
    return F.cross_entropy(logits, target, reduction=reduction), None, None, None


def fused_losses(x, weight, target, bias=None, ce_weight=None, ignore_index=-100, *rest):
    return F.cross_entropy(x @ weight.T, target), None, None, None


KNOWN = {
    "rms": by_autograd("liger_kernel", "LigerRMSNormFunction", rms),
    "added": by_autograd("liger_kernel", "LigerFusedAddRMSNormFunction", added_rms),
    "rope": by_autograd("liger_kernel", "LigerRopeFunction", rope),
    "swiglu": by_autograd(
        "liger_kernel", "LigerSiLUMulFunction", lambda a, b, gate=1.0, down=1.0: F.silu(a) * b, True
    ),
    "ce": by_autograd("liger_kernel", "LigerCrossEntropyFunction", losses_of),
    "fused ce": by_autograd("liger_kernel", "LigerFusedLinearCrossEntropyFunction", fused_losses),
    "4 bit": by_autograd("bitsandbytes", "MatMul4Bit", four_bit),
    "8 bit": by_autograd("bitsandbytes", "MatMul8bitLt", four_bit),
    "flash": by_autograd("flash_attn", "FlashAttnFunc", attention),
    "varlen": by_autograd("flash_attn", "FlashAttnVarlenFunc", varlen),
}


class Layer(nn.Module):
    """A layer of a decoder from known functions; projections may be frozen 4-bit with LoRA."""

    def __init__(self, quantised, packed):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(7, D), nn.Linear(D, 7, bias=False)
        self.norm, self.norm2 = nn.Parameter(torch.rand(D) + 1), nn.Parameter(torch.rand(D) + 1)
        self.qkv, self.gate = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, 2 * D, bias=False)
        self.out, self.down = nn.Linear(D, D, bias=False), nn.Linear(D, D, bias=False)
        self.a, self.b = nn.Linear(D, 2, bias=False), nn.Linear(2, D, bias=False)
        self.bits = torch.randint(-8, 8, (D * D, 1), dtype=torch.int8)
        self.bias = nn.Parameter(torch.rand(D))
        self.quantised, self.packed = quantised, packed
        self.double()

    def attend(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).unbind(-3)  # [B, T, heads, d]
        at = torch.arange(x.shape[1], dtype=x.dtype)[None, :, None] / 3
        cos, sin = at.cos().expand(1, -1, D // HEADS), at.sin().expand(1, -1, D // HEADS)
        q, k = KNOWN["rope"].apply(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        rest = (None, True, (-1, -1), 0.0, None, False, False)
        if not self.packed:
            return KNOWN["flash"].apply(q, k, v, 0.0, *rest, True).flatten(2)
        ends = torch.arange(0, q.shape[0] * q.shape[1] + 1, q.shape[1], dtype=torch.int32)
        rows = [t.flatten(0, 1) for t in (q, k, v)]
        out = KNOWN["varlen"].apply(*rows, ends, ends, 3, 3, 0.0, *rest, None, True)
        return out.view(*x.shape)

    def forward(self, ids):
        x = self.table(ids)
        y = self.out(self.attend(KNOWN["rms"].apply(x, self.norm, 1e-6)))
        if self.quantised:
            function = KNOWN[f"{self.quantised} bit"]
            y = function.apply(y, self.bits, None, self.bias, (D, D)) + self.b(self.a(y))
        y, x = KNOWN["added"].apply(y, x, self.norm2, 1e-6)
        gate, up = self.gate(y).chunk(2, -1)
        x = x + self.down(KNOWN["swiglu"].apply(gate, up))
        logits = self.head(x).flatten(0, 1)
        args = (ids.roll(-1, 1).flatten(), None, -100, 0.0, 0.0, "none")
        return KNOWN["ce"].apply(logits, *args)[0].view(ids.shape)


def separate(model):
    """Gradients of each task, each by a graph of its own: some functions run backward once."""
    found = {}
    for task in dict.fromkeys(TASKS):
        own = torch.tensor([t == task for t in TASKS])[:, None]
        parameters = list(model.parameters())
        loss = (model(IDS) * own).sum()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        found[task] = [flat(gradients, parameters)]
    return found


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize(("quantised", "packed"), [(0, False), (4, True), (8, False)])
def test_a_model_of_known_functions_is_split(quantised, packed, passes):
    model = Layer(quantised, packed)
    make = lambda m, method: SinglePassEngine(m, method, "whole_model", passes=passes)
    found = found_by(make, model, lambda: (model(IDS), None), TASKS, steps=2)
    assert worst_error(found, separate(model)) < EXACT


def test_what_writes_to_what_it_saved_is_repeated_also_where_nothing_is_split():
    model = Layer(0, False)
    make = lambda m, method: Engine(m, method, "whole_model", engine="per_task")
    found = found_by(make, model, lambda: (model(IDS), None), TASKS)
    assert worst_error(found, separate(model)) < EXACT


def refused(function, *args):
    """Why an engine does not follow a function of what a projection makes, with its parameters."""
    model = nn.ModuleDict({"a": nn.Linear(D, D), "head": nn.Linear(D, 7, bias=False)}).double()
    x = torch.linspace(-1, 1, 4 * D, dtype=torch.float64).view(4, D)
    engine = Engine(model, Joint())
    with engine.tasks(TASKS, inputs=[x]):
        h = model["a"](x)
        out = function.apply(*[arg(model, h) if callable(arg) else arg for arg in args])
        out = out[0] if isinstance(out, tuple) else out
        loss = model["head"](h).square().sum(1)
        engine.backward(loss + out.flatten()[:4] if out.ndim else loss + out)
    return engine.refused


def test_a_fused_loss_of_all_samples_is_refused_by_name():
    reason = refused(
        KNOWN["fused ce"], lambda m, h: h, lambda m, h: m["head"].weight, torch.tensor([1, 2, 3, 4])
    )
    assert "'LigerFusedLinearCrossEntropyFunction.apply'" in reason
    assert "fused_linear_cross_entropy=False" in reason
    averaged = refused(KNOWN["ce"], lambda m, h: h, torch.tensor([1, 2, 3, 4]), None)
    assert averaged and "samples" in averaged


def test_a_sequence_of_several_tasks_is_refused():
    rest = (2, 2, 0.0, None, True, (-1, -1), 0.0, None, False, False, None, True)
    apart = torch.tensor([0, 1, 2, 3, 4], dtype=torch.int32)
    joined = torch.tensor([0, 2, 4], dtype=torch.int32)
    for ends, expected in ((apart, ""), (joined, "holds tokens of several tasks")):
        model = Layer(0, False)
        x = torch.linspace(-1, 1, 4 * D, dtype=torch.float64).view(4, D)
        engine = Engine(model, Joint())
        with engine.tasks(TASKS, inputs=[x]):
            h = model.out(x).view(4, HEADS, -1)
            y = KNOWN["varlen"].apply(h, h, h, ends, ends, *rest)
            engine.backward(model.down(y.flatten(1)).square().sum(1))
        assert expected in engine.refused and bool(expected) == bool(engine.refused)


def test_sequences_laid_end_to_end_of_several_rows():
    """Rows of 2 tokens in another order of tasks each; attention of variable length in all."""
    rest = (2, 2, 0.0, None, True, (-1, -1), 0.0, None, False, False, None, True)
    x = torch.linspace(-1, 1, 4 * D, dtype=torch.float64).view(2, 2, D)
    segments = torch.tensor([[0, 1], [2, 2]])
    for ends, expected in (([0, 1, 2, 4], ""), ([0, 2, 4], "holds tokens of several tasks")):
        model, ends = Layer(0, False), torch.tensor(ends, dtype=torch.int32)

        def losses(model=model, ends=ends):
            h = model.out(x).flatten(0, 1).unflatten(1, (HEADS, -1))
            y = KNOWN["varlen"].apply(h, h, h, ends, ends, *rest)
            return model.down(y.flatten(1)).view(x.shape).square().sum(2)

        engine = Engine(model, Joint(), "whole_model")
        with engine.tasks(["fr", "hi", "fr"], inputs=[x], segments=segments):
            report = engine.backward(losses())
        rows = []
        for own in ([[True, False], [True, True]], [[False, True], [False, False]]):
            model.zero_grad()
            losses()[torch.tensor(own)].sum().backward()
            rows.append(
                torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            )
        expected_gram = torch.stack([torch.stack([a @ b for b in rows]) for a in rows])
        assert torch.allclose(report.gram[0], expected_gram, rtol=1e-9)
        assert expected in engine.refused and bool(expected) == bool(engine.refused)
