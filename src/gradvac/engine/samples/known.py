"""Custom autograd functions of other packages, known by package and name.

None of these packages is needed. A function is looked up when it is applied; what is said of it
here is checked by the first step, like any registered operation.
"""

from __future__ import annotations

from torch.autograd import Function

from gradvac.engine.samples.operations import Entry, SplitBy
from gradvac.engine.samples.places import Rule
from gradvac.engine.samples.registered_rules import (
    refused,
    rows_apart,
    rows_chosen,
    rows_put,
    samples_along,
    token_losses,
    varlen_attention,
)

_KNOWN: dict[tuple[str, str], Entry] = {}


def _add(package: str, names: str, rule: Rule, once: bool = False) -> None:
    for name in names.split():
        _KNOWN[package, name] = Entry(rule, SplitBy.REGISTERED, once=once)


def known_function(function: type[Function]) -> Entry | None:
    """Return the entry of a function of a known package, None if there is none."""
    package = function.__module__.partition(".")[0]
    return _KNOWN.get(("flash_attn" if "flash_attn" in package else package, function.__name__))


_first = samples_along(0)

_add("bitsandbytes", "MatMul4Bit MatMul8bitLt MatMul8bitFp", rows_apart)

_add("flash_attn", "FlashAttnFunc FlashAttnKVPackedFunc FlashAttnQKVPackedFunc", _first)
_add("flash_attn", "FlashAttnVarlenFunc", varlen_attention(3, 4))
_add("flash_attn", "FlashAttnVarlenKVPackedFunc", varlen_attention(2, 3))
_add("flash_attn", "FlashAttnVarlenQKVPackedFunc", varlen_attention(1, 1))
_add("flash_attn", "IndexFirstAxis", rows_chosen)
_add("flash_attn", "IndexPutFirstAxis", rows_put)

_add(
    "liger_kernel",
    "LigerRMSNormFunction LigerLayerNormFunction LigerFusedAddRMSNormFunction LigerDyTFunction"
    " LigerPolyNormFunction LigerSoftmaxFunction",
    rows_apart,
)
# Their backward writes the gradients to the inputs that they saved.
_add("liger_kernel", "LigerSiLUMulFunction LigerGELUMulFunction", rows_apart, once=True)
_add(
    "liger_kernel",
    "LigerRopeFunction LigerQwen2VLMRopeFunction LigerLlama4RopeFunction LigerGroupNormFunction"
    " LigerFusedMoEFunction",
    _first,
)
_add("liger_kernel", "LigerCrossEntropyFunction", token_losses(6))
_add(
    "liger_kernel",
    "LigerFusedLinearCrossEntropyFunction",
    refused(
        "it returns one loss of all samples, and its backward can run only once; compute losses "
        "from the logits (fused_linear_cross_entropy=False where Liger is applied)"
    ),
)

_add("unsloth", "Fast_RMS_Layernorm Fast_Layernorm", rows_apart)
_add("unsloth", "Fast_RoPE_Embedding Fast_RoPE_Embedding_QK Slow_RoPE_Embedding", _first)
_add("unsloth", "Fast_CrossEntropyLoss", _first, once=True)
_add("unsloth", "LoRA_MLP LoRA_QKV LoRA_W", rows_apart, once=True)

_add("peft", "BlockCircularConvolution", rows_apart)

_add("transformers", "GeLUFunction PhimoeMultiplier SqrtBoundDerivative XDropout", rows_apart)
_add("transformers", "YosoCumulation YosoLSHCumulation XSoftmax", _first)
