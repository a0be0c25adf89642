"""Granularities of a measurement: parameters grouped by their function, and Gram matrices summed.

The Gram matrix of a group is the sum of those of its parameters, so Gram matrices measured for each
parameter give those of every coarser granularity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from gradvac.engine import GRANULARITIES, parameter_groups
from gradvac.engine.groups import Grouping
from gradvac.engine.parameter_names import ATTENTION, CROSS_ATTENTION, is_embedding, is_norm

__all__ = ["MEASURED", "coarser", "group_of", "grouping", "parameter_kind", "summed"]

MEASURED = ("parameter", "parameter_kind", *reversed(GRANULARITIES))
"""Granularities of a measurement; all can be computed from the first."""

_ROLES = {
    "q": re.compile(r"(?:^|[._])(?:q|query)(?:_proj|_lin)?(?:\.|$)"),
    "k": re.compile(r"(?:^|[._])(?:k|key)(?:_proj|_lin)?(?:\.|$)"),
    "v": re.compile(r"(?:^|[._])(?:v|value)(?:_proj|_lin)?(?:\.|$)"),
    "qkv": re.compile(r"in_proj|c_attn|qkv|query_key_value"),
    "o": re.compile(r""),  # the rest of an attention
}
_FEED_FORWARD = {
    "1": re.compile(r"(?:^|[._])(?:fc1|linear1|lin1|up|gate|wi|w1|w3|c_fc)(?:_\w+)?(?:\.|$)"),
    "2": re.compile(r"(?:^|[._])(?:fc2|linear2|lin2|down|wo|w2|c_proj)(?:_\w+)?(?:\.|$)"),
}
_BERT = {"1": re.compile(r"intermediate\.dense"), "2": re.compile(r"output\.dense")}


def parameter_kind(name: str) -> str:
    """Return what a parameter does, from its name, such as ``decoder.cross_attention.q``.

    Kinds are ``embedding`` (with the softmax projection), ``norm``, ``self_attention`` and
    ``cross_attention`` with ``q``, ``k``, ``v``, ``o`` (``qkv`` if a library keeps them in one
    matrix), ``feed_forward`` with ``1`` and ``2``, and ``other``; with the side in front if the
    name contains it. Knows the names of this package, ``nn.Transformer``, fairseq and the encoders,
    decoders and seq2seq models of Hugging Face; a function from name to kind may be given instead.

    Example:
        >>> from gradvac.geometry.kinds import parameter_kind
        >>> parameter_kind("model.decoder.layers.0.encoder_attn.q_proj.weight")
        'decoder.cross_attention.q'
    """
    low = name.lower()
    kind = _kind(low)
    if kind == "embedding":
        return kind
    side = next((part for part in low.split(".") if part in ("encoder", "decoder")), None)
    return f"{side}.{kind}" if side else kind


def _kind(name: str) -> str:
    if is_norm(name):
        return "norm"
    if is_embedding(name):
        return "embedding"
    if ATTENTION.search(name):
        block = "cross_attention" if CROSS_ATTENTION.search(name) else "self_attention"
        return f"{block}.{next(role for role, shown in _ROLES.items() if shown.search(name))}"
    for number in ("1", "2"):
        if _BERT[number].search(name) or _FEED_FORWARD[number].search(name):
            return f"feed_forward.{number}"
    return "other"


def grouping(granularity: Grouping) -> Grouping:
    """Return a granularity of a measurement in the form that the engine takes.

    Example:
        >>> from gradvac.geometry.kinds import grouping
        >>> grouping("parameter_kind")("encoder.layers.0.linear1.weight")
        'encoder.feed_forward.1'
    """
    named = {"parameter": lambda name: name, "parameter_kind": parameter_kind}
    return named.get(granularity, granularity) if isinstance(granularity, str) else granularity


def group_of(shapes: Mapping[str, Sequence[int]], granularity: Grouping) -> dict[str, str]:
    """Return the group of every parameter, from names and shapes, in the order of the model.

    Raises:
        GradientError: if there is no such granularity.

    Example:
        >>> from gradvac.geometry.kinds import group_of
        >>> group_of({"layers.0.weight": (2, 2), "layers.1.weight": (2, 2)}, "all_layer")
        {'layers.0.weight': 'layers.0', 'layers.1.weight': 'layers.1'}
    """
    named = [(n, nn.Parameter(torch.empty(*s, device="meta"))) for n, s in shapes.items()]
    groups = parameter_groups(named, grouping(granularity))
    return {name: group.name for group in groups for name in group.names}


def summed(
    gram: np.ndarray, groups: Sequence[str], group_of: Mapping[str, str]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Sum Gram matrices [groups, K, K] of groups to those of coarser groups ``[coarser, K, K]``.

    ``group_of`` maps each of ``groups`` to the coarser one it is part of.

    Example:
        >>> import numpy as np
        >>> from gradvac.geometry.kinds import summed
        >>> names, gram = summed(np.ones((2, 3, 3)), ["w", "b"], {"w": "layer", "b": "layer"})
        >>> names, gram.shape, float(gram[0, 0, 0])
        (('layer',), (1, 3, 3), 2.0)
    """
    names = tuple(dict.fromkeys(group_of[g] for g in groups))
    out = np.zeros((len(names), *gram.shape[1:]))
    np.add.at(out, [names.index(group_of[g]) for g in groups], gram)
    return names, out


def coarser(
    groups: Sequence[str], granularity: str, shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, dict[str, str]]:
    """Return all granularities that groups of one ``granularity`` can be summed to, itself first.

    The result is granularity -> {recorded group: coarser group}. ``shapes`` of the parameters let a
    record made parameter by parameter give ``all_matrix`` and ``all_adapter``; without them these
    are left out, and ``all_adapter`` without adapters too. Matrices, whose vectors need not be of
    the same module, are not summed to modules. Groups of a user's own function can only be summed
    to the whole model.

    Example:
        >>> from gradvac.geometry.kinds import coarser
        >>> list(coarser(["layers.0", "layers.1"], "all_layer"))
        ['all_layer', 'enc_dec', 'whole_model']
    """
    if granularity == "parameter":
        wanted = [g for g in MEASURED if g not in ("all_matrix", "all_adapter") or shapes]
        sizes = shapes or {name: (1, 1) for name in groups}
        found = {g: group_of({n: sizes[n] for n in groups}, g) for g in wanted}
        if found.get("all_adapter") == found.get("all_matrix"):  # there are no adapters
            found.pop("all_adapter", None)
        return found
    found = {granularity: {g: g for g in groups}}
    known = granularity in GRANULARITIES
    below = GRANULARITIES[: GRANULARITIES.index(granularity)] if known else ("whole_model",)
    if granularity in ("all_matrix", "all_adapter"):
        below = GRANULARITIES[: GRANULARITIES.index("all_module")]
    for wanted in reversed(below):
        inside = {f"{g}.weight": (1, 1) for g in groups}  # a layer's name becomes a parameter's
        found[wanted] = {k.removesuffix(".weight"): v for k, v in group_of(inside, wanted).items()}
    return found
