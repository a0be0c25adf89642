"""Reads parameter names of this package, PyTorch, fairseq and Hugging Face.

Parameter groups and kinds of parameters (:mod:`gradvac.geometry.kinds`) both read names here.
"""

import re
from collections.abc import Sequence
from itertools import takewhile

_STACK = re.compile(r"(?:^|\.)(?:\w*(?:layers?|blocks?)|h)\.(\d+)\.")
_NORM = re.compile(r"norm|(?:^|[._])ln(?:[_.]|\d|$)", re.IGNORECASE)
_EMBEDDING = re.compile(
    r"embed|(?:^|[._])emb(?:[._]|$)|(?:^|\.)(?:wte|wpe|shared|lm_head|generator|softmax|proj_out)"
    r"(?:\.|$)|output_projection|final_logits_bias|relative_attention_bias",
    re.IGNORECASE,
)


def layer_of(name: str) -> str | None:
    """Return the Transformer layer of a parameter; None if it is outside the layers.

    Example:
        >>> layer_of("model.encoder.layers.0.fc1.weight")
        'model.encoder.layers.0'
    """
    match = _STACK.search(name)
    return name[: match.end() - 1] if match else None


def is_norm(name: str) -> bool:
    """Return whether a parameter belongs to a normalisation."""
    return bool(_NORM.search(name))


def is_embedding(name: str) -> bool:
    """Return whether a parameter belongs to an embedding or the softmax projection."""
    return bool(_EMBEDDING.search(name))


CROSS_ATTENTION = re.compile(r"cross|encoder_attn|encdecattention|multihead_attn")
ATTENTION = re.compile(r"attn|attention")
_MIXER = re.compile(r"mixer|mamba")
_FEED_FORWARD = re.compile(r"feed_?forward|mlp|(?:^|[._])ffn?(?:[._]|$)")
_BEFORE_ATTENTION = re.compile(r"input_layernorm|layernorm_before|(?:^|[._])(?:ln|norm)_?1(?:\.|$)")
_NORM_OF_ATTENTION = re.compile(r"post_attention")
_SECOND = re.compile(r"(?:^|[._])(?:ln|norm)_?2(?:\.|$)")
_THIRD = re.compile(r"(?:^|[._])(?:ln|norm)_?3(?:\.|$)")

_ADAPTER = re.compile(  # what PEFT calls the parameters of its methods, and "adapter" elsewhere
    r"(?:^|\.)(?:\w*lora|p?vera|b?oft|psoft|adamss|adapter|beft|c3a|deft|fourierft|frod|hada|hira|hra|ia3"
    r"|lily|ln_tuning|lokr|miss|osf|peanut|poly|road|shadow|shira|supertuning|trainable_tokens|vblora"
    r"|waveft)_\w+(?:\.|$)"
)


def adapted_module(name: str) -> str | None:
    """Return the module that an adapter's parameter belongs to; None if it is no adapter's.

    Example:
        >>> adapted_module("model.layers.0.self_attn.q_proj.lora_A.default.weight")
        'model.layers.0.self_attn.q_proj'
    """
    match = _ADAPTER.search(name)
    return name[: match.start()] if match else None


def sublayers(names: Sequence[str], layer: str) -> dict[str, str]:
    """Return for each parameter of a Transformer layer the part of the layer it belongs to.

    Parts are ``self_attention``, ``cross_attention``, ``mixer`` (of Mamba) and ``feed_forward``,
    which is the rest. A norm belongs to the part whose module contains it, else to the part that
    its name says it is in front of or behind.

    Args:
        names: parameters of the layer.
        layer: name of the layer.

    Example:
        >>> names = ["h.0.attn.c_proj.weight", "h.0.mlp.c_proj.weight", "h.0.ln_1.weight"]
        >>> list(sublayers(names, "h.0").values())
        ['self_attention', 'feed_forward', 'self_attention']
    """
    own = {name: name.lower().removeprefix(layer.lower()) for name in names}
    found = {name: _part(own[name]) for name in names if not is_norm(name)}
    depth = len(layer.split("."))
    behind = any(is_norm(name) and _FEED_FORWARD.search(own[name]) for name in names)
    third = any(map(_THIRD.search, own.values()))
    for name in names:
        if name in found:
            continue
        path = name.split(".")
        near = max(found, key=lambda other: common_start(path, other.split(".")), default=None)
        if near in found and is_norm(name) and common_start(path, near.split(".")) > depth:
            found[name] = found[near]
        else:
            found[name] = _part_of_norm(own[name], behind, third)
    return {name: found[name] for name in names}


def _part(name: str) -> str:
    if CROSS_ATTENTION.search(name):
        return "cross_attention"
    if ATTENTION.search(name):
        return "self_attention"
    return "mixer" if _MIXER.search(name) else "feed_forward"


def _part_of_norm(name: str, behind: bool, third: bool) -> str:
    """Return the part of a norm, by its own name.

    Args:
        name: its name in the layer.
        behind: whether the layer has norms of the feed-forward by name; then a norm called
            ``post_attention`` is that of the attention, else that in front of the feed-forward.
        third: whether the layer has a norm number 3; then number 2 is that of a cross-attention.
    """
    if _NORM_OF_ATTENTION.search(name) and not behind:
        return "feed_forward"
    if _BEFORE_ATTENTION.search(name):
        return "self_attention"
    if _SECOND.search(name) and third:
        return "cross_attention"
    return _part(name)


def common_start(a: Sequence[str], b: Sequence[str]) -> int:
    """Number of leading items two sequences have in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
