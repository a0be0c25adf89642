"""A make-believe device, on which launches, waits and mixed devices show without a GPU.

Its tensors hold memory of the host. As on a GPU, a tensor of the host may not meet one of the
device, and the host waits for the device where it reads one.
"""

import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.backend_registration as registration
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READS = {"_local_scalar_dense", "is_nonzero", "equal"}
SIZED = {"nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select"}
MIXES = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"}
VIEWS = set(
    "view _unsafe_view t transpose permute slice select unsqueeze squeeze expand detach alias "
    "as_strided split split_with_sizes unbind chunk narrow _reshape_alias diagonal unfold".split()
)


class Backend:
    """What torch asks of a device's module."""

    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    manual_seed_all = staticmethod(lambda seed: None)
    _is_in_bad_fork = staticmethod(lambda: False)


registration._setup_privateuseone_for_python_backend("believe", backend_module=Backend())
DEVICE = torch.device("believe:0")


class There(Tensor):
    """A tensor of the device."""

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> Any:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Believe.current.run(func, args, kwargs or {})


class Believe(TorchDispatchMode):
    """Makes the device, and counts what costs time on a GPU and nothing on a CPU.

    Attributes:
        launches: operations on its tensors, views left out.
        waits: tensors read by the host, by the file and function of gradvac that reads, or
            "outside". A copy to the host that is ``non_blocking`` is a launch.
        blocked: copies of tensors from the host that are not ``non_blocking``, and indices that lie
            there, for which the host waits too; by place.
    """

    current: "Believe"

    def __init__(self) -> None:
        super().__init__()
        self.clear()
        Believe.current = self

    def clear(self) -> None:
        """Begin to count anew."""
        self.launches, self.waits, self.blocked = 0, Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(x, There) for x in _flat(args, kwargs)):
            return self.run(func, args, kwargs)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "believe":
            if func.overloadpacket.__name__ == "_to_copy" and not kwargs.get("non_blocking"):
                self.blocked[_place()] += 1
            return There(self.computed(func, args, kwargs))
        return func(*args, **kwargs)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func.overloadpacket.__name__
        flat = _flat(args, kwargs)
        tensors = [x for x in flat if isinstance(x, Tensor)]
        if name not in MIXES and any(x.ndim and not isinstance(x, There) for x in tensors):
            raise RuntimeError(f"{func}: a tensor of the host meets one of the device")
        device = kwargs.get("device")
        leaves = name == "_to_copy" and device is not None and torch.device(device).type == "cpu"
        later = leaves and kwargs.get("non_blocking", False)
        masked = name.startswith(("index", "_index_put")) and any(
            isinstance(x, There) and x.dtype == torch.bool for x in flat[1:]
        )
        into_host = name == "copy_" and not isinstance(args[0], There)
        if from_host(name, args):
            self.blocked[_place()] += 1
        if (leaves and not later) or into_host or masked or name in READS | SIZED:
            self.waits[_place()] += 1
        elif name not in VIEWS:
            self.launches += 1
        out = self.computed(func, args, kwargs)
        if leaves or into_host or name in READS:
            return args[0] if into_host else out
        given = {id(x.held): x for x in flat if isinstance(x, There)}
        wrap = lambda x: given.get(id(x), There(x)) if type(x) is Tensor else x
        return _each(wrap, out)

    def computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operation gives for the memory that its tensors hold."""
        held = lambda x: x.held if isinstance(x, There) else x
        named = {key: _each(held, value) for key, value in kwargs.items()}
        if "device" in kwargs:
            named["device"] = "cpu"
        return func(*(_each(held, value) for value in args), **named)


def from_host(name: str, args: Any) -> bool:
    """Whether an operation copies from the host and waits for that."""
    if name == "copy_":
        return not isinstance(args[1], There) and not (len(args) > 2 and args[2])
    indices = args[1] if name.startswith(("index", "_index_put")) else ()
    return isinstance(indices, list | tuple) and any(
        isinstance(x, Tensor) and not isinstance(x, There) for x in indices
    )


def _flat(args: Any, kwargs: Any) -> list[Any]:
    """The arguments of an operation, and what is in those that are lists: no list holds another."""
    given = (*args, *kwargs.values())
    return [x for value in given for x in (value if isinstance(value, list | tuple) else (value,))]


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """An argument or a result, changed; of a list each member."""
    return type(value)(map(change, value)) if isinstance(value, list | tuple) else change(value)


def _place() -> str:
    """Where in gradvac the program is."""
    frames = [f for f in traceback.extract_stack() if "/gradvac/" in f.filename]
    between = "/tracing/trace.py", "/samples/places.py"  # on the way to the device
    places = [f for f in frames if not f.filename.endswith(between)]
    file = places[-1].filename.partition("/gradvac/")[2] if places else ""
    return f"{file} {places[-1].name}" if places else "outside"
