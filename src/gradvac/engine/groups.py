"""Parameter groups: which parameters share one Gram matrix and one set of weights.

The paper's granularities (Wang et al. 2021, Appendix F, Table 7), and two between its last two (of
modules and of adapters, chosen here), on any model whose parameter
names follow the usual pattern ``<stack>.<number>.``, as ``encoder.layers.0.linear1.weight``,
``bert.encoder.layer.0...``, ``model.layers.0...``, ``encoder.block.0...``, ``transformer.h.0...``:

=============  =====================================================================
whole_model    everything is one group
enc_dec        encoder, decoder, and the parameters of neither side
all_layer      each Transformer layer (not each leaf module)
all_module     self-attention, cross-attention and feed-forward of each layer
all_adapter    each adapted module: its adapter's matrices and vectors; the rest as all_matrix
all_matrix     each matrix, with the vectors that go with it
=============  =====================================================================

Outside the layers, embeddings and the softmax projection form the group ``embedding`` (for enc_dec,
those outside both sides; a table shared by both belongs to neither), a final norm joins the last
layer of its stack (its feed-forward), and the rest (poolers, classifiers) forms the group ``head``.
In a model without any stack every child module counts as a layer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from torch import nn

from gradvac.engine.parameter_names import (
    adapted_module,
    common_start,
    is_embedding,
    is_norm,
    layer_of,
    sublayers,
)
from gradvac.errors import GradientError

GRANULARITIES = ("whole_model", "enc_dec", "all_layer", "all_module", "all_adapter", "all_matrix")
"""How the parameters can be divided into groups, from one group to one for each tensor."""

Grouping = str | Callable[[str], str]
"""One of ``GRANULARITIES``, or a function from a parameter's name to its group's name."""

Heads = Mapping[str, str | Sequence[str]] | Callable[[str], str | None]
"""Modules or parameters that belong to only one task, by task; or a function of their names."""

Model = nn.Module | Iterable[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class ParameterGroup:
    """Trainable parameters that are combined with the same weights.

    Attributes:
        name: name of the group, the key of all state kept for it.
        names: names of its parameters in the model.
        parameters: the parameters, in the same order.

    Example:
        >>> import torch
        >>> import gradvac
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> gradvac.parameter_groups(model, "whole_model")[0].names
        ('0.weight', '0.bias', '1.weight', '1.bias')
    """

    name: str
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]


def parameter_groups(
    model: Model, granularity: Grouping = "all_layer", heads: Sequence[ParameterGroup] = ()
) -> list[ParameterGroup]:
    """Sort the trainable parameters of a model into groups, in the order of the model.

    Frozen parameters are left out; a tied parameter counts once, under its first name. The name
    prefix ``torch.compile`` adds is dropped, so state fits compiled and plain models alike.

    Args:
        model: the model, or names and parameters of it.
        granularity: how to group.
        heads: parameters that belong to one task each, to be left out; see :func:`task_heads`.

    Raises:
        GradientError: if nothing is trainable or the granularity is unknown.

    Example:
        >>> import torch
        >>> import gradvac
        >>> layer = torch.nn.TransformerEncoderLayer(d_model=8, nhead=2, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, num_layers=2)
        >>> [group.name for group in gradvac.parameter_groups(model, "all_layer")]
        ['layers.0', 'layers.1']
    """
    own = {id(p) for head in heads for p in head.parameters}
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, parameter in _named(model):
        if parameter.requires_grad and id(parameter) not in own:
            found.setdefault(id(parameter), (name, parameter))
    if not found:
        raise GradientError(
            "every trainable parameter of the model belongs to a head; nothing is shared by tasks"
            if own
            else "the model has no trainable parameter (requires_grad is False for all)"
        )
    group_of = _group_names([(name, p.ndim) for name, p in found.values()], granularity)
    members: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in found.values():
        members.setdefault(group_of[name], []).append((name, parameter))
    return [
        ParameterGroup(group, tuple(n for n, _ in pairs), tuple(p for _, p in pairs))
        for group, pairs in members.items()
    ]


def task_heads(model: Model, heads: Heads | None) -> list[ParameterGroup]:
    """Find the trainable parameters that belong to one task each, in groups named by the task.

    Args:
        model: the model, or names and parameters of it.
        heads: for each task the names of its modules or parameters; or a function from a
            parameter's name to its task, None for shared parameters.

    Raises:
        GradientError: if a name matches no parameter or module, or two tasks claim a parameter.
    """
    if heads is None:
        return []
    named = [(name, p) for name, p in _named(model) if p.requires_grad]
    if callable(heads):
        claims = [(task, name, p) for name, p in named if (task := heads(name)) is not None]
    else:
        names = [name for name, _ in _named(model)]
        claims = []
        for task, prefixes in heads.items():
            for prefix in [prefixes] if isinstance(prefixes, str) else prefixes:
                _check_prefix(task, prefix, names)
                claims += [(task, name, p) for name, p in named if _lies_in(name, prefix)]
    members: dict[str, dict[int, tuple[str, nn.Parameter]]] = {}
    owner: dict[int, str] = {}
    for task, name, p in claims:
        if owner.setdefault(id(p), task) != task:
            raise GradientError(
                f"parameter {name!r} is in the head of task {task!r} and in that of "
                f"{owner[id(p)]!r}; a head belongs to one task, leave out what they share"
            )
        members.setdefault(task, {}).setdefault(id(p), (name, p))
    return [
        ParameterGroup(task, tuple(n for n, _ in found), tuple(p for _, p in found))
        for task, found in ((task, list(each.values())) for task, each in members.items())
    ]


def _named(model: Model) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters, a tied parameter under each of its names."""
    if isinstance(model, nn.Module):
        model = model.named_parameters(remove_duplicate=False)
    return [(name.replace("_orig_mod.", ""), p) for name, p in model]


def _lies_in(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _check_prefix(task: str, prefix: str, names: Sequence[str]) -> None:
    if any(_lies_in(name, prefix) for name in names):
        return
    parts = [name.split(".") for name in names]
    known = dict.fromkeys(".".join(p[: n + 1]) for p in parts for n in range(len(p)))
    near = get_close_matches(prefix, known, 1)
    raise GradientError(
        f"heads[{task!r}] is {prefix!r}, which is neither a module with parameters nor a parameter"
        + (f"; did you mean {near[0]!r}?" if near else f"; modules: {', '.join(list(known)[:8])}")
    )


def _group_names(shapes: list[tuple[str, int]], granularity: Grouping) -> dict[str, str]:
    """Map every parameter name to its group, given names and numbers of dimensions."""
    names = [name for name, _ in shapes]
    if callable(granularity):
        return {name: granularity(name) for name in names}
    match granularity:
        case "whole_model":
            return dict.fromkeys(names, "whole_model")
        case "enc_dec":
            return _sides(names)
        case "all_layer":
            return _layers(names)
        case "all_module":
            return _modules(names)
        case "all_adapter":
            by_matrix = _matrices(shapes)
            return {n: adapted_module(n) or adapted_module(g) or g for n, g in by_matrix.items()}
        case "all_matrix":
            return _matrices(shapes)
        case _:
            near = get_close_matches(granularity, GRANULARITIES, 1)
            raise GradientError(
                f"granularity is {granularity!r}; it must be a function or one of "
                f"{', '.join(GRANULARITIES)}" + (f"; did you mean {near[0]!r}?" if near else "")
            )


def _layers(names: list[str]) -> dict[str, str]:
    layers = list(dict.fromkeys(layer for name in names if (layer := layer_of(name))))
    if not layers:
        return {name: name.partition(".")[0] if "." in name else "head" for name in names}
    return {name: layer_of(name) or _leftover(name, layers) for name in names}


def _modules(names: list[str]) -> dict[str, str]:
    """Divide each Transformer layer into its attentions and its feed-forward."""
    by_layer = _layers(names)
    members: dict[str, list[str]] = {}
    for name, layer in by_layer.items():
        members.setdefault(layer, []).append(name)
    found: dict[str, str] = {}
    for layer, own in members.items():
        if any(layer_of(name) for name in own):
            found |= {name: f"{layer}.{part}" for name, part in sublayers(own, layer).items()}
        else:
            found |= dict.fromkeys(own, layer)
    return {name: found[name] for name in names}


def _leftover(name: str, layers: list[str]) -> str:
    """Group of a parameter outside the layers."""
    if is_embedding(name):
        return "embedding"
    # A final norm is beside its stack; a norm elsewhere is part of a head.
    parent = name.split(".")[:-2]
    stack = [layer for layer in reversed(layers) if layer.split(".")[: len(parent)] == parent]
    if is_norm(name) and stack:
        return max(stack, key=lambda layer: common_start(name, layer))
    return "head"


def _sides(names: list[str]) -> dict[str, str]:
    """Group by the encoder or decoder that holds a parameter, if it holds a stack of layers too."""
    layers = list(dict.fromkeys(layer for name in names if (layer := layer_of(name))))
    side_of_path: dict[str, str] = {}
    for layer in layers:
        parts = layer.split(".")
        side = next((part for part in parts if part in ("encoder", "decoder")), None)
        path = parts[: parts.index(side) + 1] if side else parts[:-1]
        side_of_path[".".join(path) + "."] = side or ".".join(path)

    def side_of(name: str) -> str | None:
        return next((s for path, s in side_of_path.items() if name.startswith(path)), None)

    outside = "whole_model" if not layers else None
    return {
        name: side_of(name) or side_of(layer + ".") or outside or layer
        for name, layer in _layers(names).items()
    }


def _matrices(shapes: list[tuple[str, int]]) -> dict[str, str]:
    """Give every matrix a group; vectors join the matrix of their layer nearest by name.

    Nearest is the one sharing the longest module path (a bias: its own module's matrix; a norm: one
    of its sub-layer), then the one closest before, then closest after. The cosine of a single
    vector is +-1 or based on few numbers, so a vector is never a group of its own if its layer has
    a matrix.
    """
    layer_of = _layers([name for name, _ in shapes])
    matrices: dict[str, list[tuple[int, str]]] = {}
    for n, (name, ndim) in enumerate(shapes):
        if ndim > 1:
            matrices.setdefault(layer_of[name], []).append((n, name))
    groups: dict[str, str] = {}
    for n, (name, ndim) in enumerate(shapes):
        near = [
            (common_start(name.split("."), matrix.split(".")), m < n, -abs(m - n), matrix)
            for m, matrix in matrices.get(layer_of[name], [])
        ]
        groups[name] = name if ndim > 1 else max(near)[3] if near else layer_of[name]
    return groups
