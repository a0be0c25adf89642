"""The make-believe device without memory: what a step moves, computes and holds, at any size.

Its tensors of floating point hold no numbers (they are on the meta device); those of integers and
truth values do, since they decide what is launched. So a step of a model of 7 billion parameters
runs in seconds. Where the host reads numbers, it gets made-up ones. Attention is fused, and
autocast converts, as on a GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DispatchKey, DispatchKeySet
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.flop_counter import flop_registry

from benchmarks.believe import READS, VIEWS, Believe, There

aten = torch.ops.aten
ALLOCATES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
FILLS = {"zero_", "fill_", "copy_", "zeros", "zeros_like", "new_zeros", "ones", "ones_like", "full"}
LOOKS_UP = {"embedding", "index_select", "index", "gather"}
ADDS_ROWS = {"index_add_", "index_put_", "_index_put_impl_", "index_copy_", "scatter_add_"}
# What autocast computes in the lower precision and what in float32: those operations of torch's
# lists for CUDA that the models here use.
LOWER = ["linear", "matmul", "mm", "bmm", "addmm", "baddbmm"]
WIDER = ["layer_norm", "softmax.int", "log_softmax.int", "nll_loss", "cross_entropy_loss"]
WIDER += ["exp", "log", "pow.Tensor_Scalar", "rsqrt"]
AUTOCAST = "AutocastPrivateUse1"


@dataclass(frozen=True)
class Launch:
    """One operation of the device.

    Attributes:
        name: of the operation.
        moved: bytes read and written.
        flops: multiplications and additions of products; 0 for other operations.
        wide: whether these are in float32 or float64.
    """

    name: str
    moved: int
    flops: int
    wide: bool


class Weighed(Believe):
    """The device that also counts bytes and operations.

    Attributes:
        n_tasks: K; Gram matrices that the host reads have 1 on the diagonal and 0.5 elsewhere.
        found: every launch since ``clear``. Memory that is asked for is none, unlike in `Believe`.
        held: bytes in use.
        peak: the most bytes in use since ``clear``.
    """

    def __init__(self, n_tasks: int = 1) -> None:
        self.n_tasks, self.held, self.peak = n_tasks, 0, 0
        super().__init__()

    def clear(self) -> None:
        """Begin to count anew."""
        super().clear()
        self.found: list[Launch] = []
        self.peak = self.held

    def moved(self, model: nn.Module) -> nn.Module:
        """Move a model from the meta device to this one."""
        with torch.no_grad():
            return model._apply(lambda x: torch.empty_like(x, device="believe"))

    def computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Shapes where numbers of floating point take part, and results where they do not."""
        name = func.overloadpacket.__name__
        held = lambda x: x.held if isinstance(x, There) else x
        own, named = tree_map(held, args), tree_map(held, kwargs)
        to_host = torch.device(kwargs.get("device") or "believe").type == "cpu"
        if to_host or name in READS or (name == "copy_" and not isinstance(args[0], There)):
            read = tree_map(self._made_up, (own, named))
            return func(*read[0], **read[1])
        out = self._shapes(func, own, named)
        self._watch(out)
        if name not in VIEWS | ALLOCATES:
            self.found.append(_launch(func, name, args, kwargs, out))
        return out

    def _shapes(self, func: Any, own: Any, named: Any) -> Any:
        if func is aten.index.Tensor and own[0].is_meta:
            own = own[0], _without_masks(own[1])
        on = lambda device: named | ({"device": device} if "device" in named else {})
        tensors = [x for x in tree_flatten((own, named))[0] if isinstance(x, Tensor)]
        unknown = any(x.is_meta for x in tensors)
        if unknown and func._schema.is_mutable and not tensors[0].is_meta:
            raise RuntimeError(f"{func}: made-up numbers would decide what is launched")
        if unknown or "device" in named:
            shapes = func(*tree_map(_bare, own), **tree_map(_bare, on("meta")))
            if unknown or shapes.is_floating_point():
                return shapes
        out = func(*own, **on("cpu"))
        return tree_map(lambda x: _bare(x) if _numbers(x) else x, out)

    def _made_up(self, x: Any) -> Any:
        """Numbers in place of those that a tensor does not hold."""
        if not isinstance(x, Tensor) or not x.is_meta:
            return x
        if x.dtype == torch.bool:
            return torch.zeros(x.shape, dtype=x.dtype)
        one, k = torch.arange(x.numel()) % self.n_tasks**2, self.n_tasks
        return torch.where(one // k == one % k, 1.0, 0.5).to(x.dtype).view(x.shape)

    def _watch(self, out: Any) -> None:
        """Count the memory of results while it is in use."""
        for x in tree_flatten(out)[0]:
            if not isinstance(x, Tensor):
                continue
            memory = x.untyped_storage()
            if not hasattr(memory, "watched"):
                memory.watched = weakref.finalize(memory, self._freed, memory.nbytes())
                self.held += memory.nbytes()
                self.peak = max(self.peak, self.held)

    def _freed(self, size: int) -> None:
        self.held -= size


def _numbers(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _bare(x: Any) -> Any:
    return x.to("meta") if isinstance(x, Tensor) else x


def _without_masks(indices: Sequence[Any]) -> list[Any]:
    """Indices with the positions that masks choose in place of the masks."""
    found: list[Any] = []
    for x in indices:
        masks = x is not None and x.dtype == torch.bool
        found.extend(x.nonzero().unbind(1) if masks else [x])
    return found


# -- the counts ----------------------------------------------------------------------------------


def _size(x: Tensor) -> int:
    """Bytes of a tensor; what is repeated by a stride of 0 counts once."""
    sizes = (n for n, stride in zip(x.shape, x.stride(), strict=True) if stride or not n)
    return prod(sizes) * x.element_size()


def _launch(func: Any, name: str, args: Any, kwargs: Any, out: Any) -> Launch:
    tensors = lambda tree: [x for x in tree_flatten(tree)[0] if isinstance(x, Tensor)]
    inputs = tensors((args, {k: x for k, x in kwargs.items() if k != "out"}))
    written = sum(map(_size, tensors(out)))
    if name in FILLS:
        moved = written + (_size(args[1]) if name == "copy_" else 0)
    elif name in LOOKS_UP:
        moved = 2 * written + sum(map(_size, inputs[1:]))
    elif name in ADDS_ROWS:  # of the target only as much as is added
        added = [_size(x) for x in inputs[1:]]
        moved = sum(added) + 2 * max(added, default=0)
    else:
        moved = written + sum(map(_size, inputs))
    formula = flop_registry.get(func.overloadpacket)
    flops = int(formula(*args, **kwargs, out_val=out)) if formula else 0
    wide = bool(inputs) and inputs[0].element_size() > 2
    return Launch(name, moved, flops, wide)


# -- as on a GPU ---------------------------------------------------------------------------------


@contextmanager
def like_a_gpu(fused: bool = True) -> Iterator[None]:
    """Autocast on the device and attention in one operation, or ``fused`` in several, inside."""
    attention = "scaled_dot_product_attention"
    every, library = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    try:
        every.fallback(torch.library.fallthrough_kernel, AUTOCAST)
        if fused:
            library.impl(attention, _attention, "AutogradPrivateUse1")
        for names, dtype in (([*LOWER, attention], torch.bfloat16), (WIDER, torch.float32)):
            for name in names:
                library.impl(name, _converting(name, dtype), AUTOCAST)
        yield
    finally:
        library._destroy()
        every._destroy()


def _converting(name: str, dtype: torch.dtype) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(aten, packet), overload or "default")
    autocast = DispatchKeySet(DispatchKey.AutocastPrivateUse1)

    def convert(x: Any) -> Any:
        wrong = isinstance(x, There) and x.is_floating_point() and x.dtype != dtype
        return x.to(dtype) if wrong else x

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return operation(*tree_map(convert, args), **tree_map(convert, kwargs))

    return run


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The memory-efficient attention of torch, which takes a mask as a summand."""
    bias = attn_mask
    if bias is not None:
        if bias.dtype == torch.bool:
            lowest = torch.full((), float("-inf"), dtype=query.dtype, device=query.device)
            bias = torch.where(bias, torch.zeros_like(lowest), lowest)
        bias = bias.expand(*query.shape[:-1], key.shape[-2])
    if enable_gqa:
        n = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(n, -3), value.repeat_interleave(n, -3)
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, dropout_p, is_causal, scale=scale
    )[0]
