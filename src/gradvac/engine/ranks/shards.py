"""Models sharded by ``fully_shard``: which parameters a forward pass uses instead of the shards.

Between passes a module holds this rank's rows of each parameter, as a DTensor. Around its forward
and backward pass ``fully_shard`` gathers them into a whole parameter, the same object every time.
Task gradients are those of the whole parameter. Its ``p.grad`` stays empty, so that ``fully_shard``
has nothing to reduce; the engine sums the gradients over the ranks, combines this rank's rows and
puts them into ``p.grad`` of the shard.

Gathering is a collective: all ranks must run the same forward and backward passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradvac.engine.samples.calls import tensors_within
from gradvac.engine.tracing.tensor_info import TensorInfo, TensorPlaces
from gradvac.errors import GradientError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(parameter: Tensor) -> bool:
    """Whether a parameter is a DTensor, of which this rank holds a part."""
    return hasattr(parameter, "device_mesh")


class Shards:
    """The whole parameters of a sharded model, by their shards.

    Args:
        model: a model of which at least one module was given to ``fully_shard``.

    Raises:
        GradientError: if parameters are not cut by rows over all ranks, or not by ``fully_shard``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._units = _units(model)
        self._whole: dict[int, nn.Parameter] = {}
        self._unit_of: dict[int, int] = {}
        self._places: dict[int, tuple[nn.Module, str]] = {}  # where one parameter of each unit is
        self._kept_whole: set[int] = set()
        modules = {id(module): module for module in model.modules()}
        for unit in self._units:
            unit.reshard()  # a forward pass without a backward pass leaves the root whole
        for n, unit in enumerate(self._units):
            before = _parameters(model)
            unit.unshard()
            for place, p in _parameters(model).items():
                if p is not before[place]:
                    _check(place[1], before[place])
                    self._whole[id(before[place])] = p
                    self._unit_of[id(p)] = n
                    self._places[n] = modules[place[0]], place[1]
            unit.reshard()
        refuse_cut((name, p) for name, p in model.named_parameters() if id(p) not in self._whole)

    def whole(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return the whole parameter that a forward pass uses; itself if not sharded."""
        return self._whole.get(id(parameter), parameter)

    def check_ranks(self, ranks: Sequence[int]) -> None:
        """Check that parameters are sharded over the ranks that sum gradients, in their order.

        Raises:
            GradientError: if they are not.
        """
        for p in self.model.parameters():
            mesh = getattr(p, "device_mesh", None)
            if mesh is not None and mesh.mesh.flatten().tolist() != list(ranks):
                raise GradientError(
                    f"parameters are sharded over ranks {mesh.mesh.flatten().tolist()}, and the "
                    f"engine trains with ranks {list(ranks)}; both must be the same ranks in the "
                    "same order"
                )

    def units_of(self, parameters: Iterable[nn.Parameter]) -> set[int]:
        """Return the numbers of the modules that whole parameters belong to."""
        return {self._unit_of[id(p)] for p in parameters if id(p) in self._unit_of}

    @contextmanager
    def gathered(self, units: Iterable[int]) -> Iterator[None]:
        """Keep some modules gathered inside; all ranks must call it."""
        chosen = [self._units[n] for n in sorted(units)]
        for unit in chosen:
            unit.unshard()
        try:
            yield
        finally:
            for unit in chosen:
                unit.reshard()

    def gather_kept_whole(self) -> None:
        """Gather, before a backward pass, what forward passes leave whole; all ranks must call it.

        That is the root module, whose parameters may be used outside its forward, such as a softmax
        in the loss. They are gathered in the first pass through a graph but gone in the second.
        """
        for n, (module, name) in self._places.items():
            if not is_sharded(module._parameters[name]):  # type: ignore[arg-type]
                self._kept_whole.add(n)
        for n in sorted(self._kept_whole):
            self._units[n].unshard()

    def reset(self) -> None:
        """Restore the shards after a forward or backward pass that failed on all ranks.

        Raises:
            GradientError: if torch is older than 2.13.
        """
        for unit in self._units:
            reset = getattr(unit, "reset_iter_state", unit.reshard)
            with suppress(RuntimeError):  # only of the root, which is usually the first one
                reset()
        states = {unit._get_fsdp_state()._training_state.name for unit in self._units}
        if states != {"IDLE"}:
            raise GradientError(
                "the step failed amid a backward pass of a model sharded by fully_shard, and torch "
                f"{torch.__version__} cannot begin another one after that; torch 2.13 can. Start "
                "all ranks again from the last checkpoint"
            )

    @contextmanager
    def passing_info_on(self, places: TensorPlaces) -> Iterator[None]:
        """Inside, pass on the information about inputs of sharded modules.

        ``fully_shard`` runs its own function before each module, whose outputs are not traced.
        """
        given: list[list[Tensor]] = []

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given.append(list(tensors_within((args, kwargs))))

        def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with torch._C.DisableTorchFunction():
                for old, new in zip(given.pop(), tensors_within((args, kwargs)), strict=False):
                    if new is not old:  # the new one is only known to be untraced
                        _hand_on(places, old, new)

        hooks = []
        for unit in self._units:
            hooks.append(unit.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
            hooks.append(unit.register_forward_pre_hook(after, with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def shards_of(model: nn.Module | Iterable[tuple[str, nn.Parameter]]) -> Shards | None:
    """Return the shards of a model; None if no module was given to ``fully_shard``.

    Raises:
        GradientError: if parameters are DTensors and the engine cannot train them.
    """
    if isinstance(model, nn.Module) and _units(model):
        return Shards(model)
    refuse_cut(model.named_parameters() if isinstance(model, nn.Module) else model)
    return None


def refuse_cut(named: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse parameters sharded by anything but ``fully_shard``, such as tensor parallelism.

    Their gradients are parts or sums of parts over ranks that work on the same samples.

    Raises:
        GradientError: if there is one.
    """
    for name, p in named:
        if is_sharded(p):
            raise GradientError(
                f"parameter {name!r} is a DTensor placed as {tuple(p.placements)}, and "  # type: ignore[attr-defined]
                "fully_shard did not make it: the engine cannot train with tensor or sequence "
                "parallelism; give it a model without, or one sharded by fully_shard alone"
            )


def local_rows(parameter: Tensor) -> Tensor:
    """Return this rank's rows of a sharded parameter."""
    local = parameter.to_local() if is_sharded(parameter) else parameter  # type: ignore[attr-defined]
    return local.detach()


def as_shard(local: Tensor, parameter: Tensor) -> Tensor:
    """Return this rank's rows of a gradient as a DTensor cut like the parameter."""
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def shard_of(whole: Tensor, parameter: Tensor, rank: int) -> Tensor:
    """Cut this rank's rows out of a whole gradient, if the parameter is sharded."""
    if not is_sharded(parameter):
        return whole
    own = local_rows(parameter).shape[0]
    height = rows_of_a_rank(parameter.shape[0], parameter.device_mesh.size())  # type: ignore[attr-defined]
    first = min(rank * height, parameter.shape[0])
    return as_shard(whole[first : first + own].clone(), parameter)


def rows_of_a_rank(rows: int, ranks: int) -> int:
    """Return how many rows a rank keeps, as in ``torch.chunk``; the last ranks may keep fewer."""
    return -(-rows // ranks)


def _units(model: nn.Module) -> list[Any]:
    """Return the modules given to fully_shard, FSDPModules."""
    named = lambda module: any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)
    return [module for module in model.modules() if named(module)]


def _parameters(model: nn.Module) -> dict[tuple[int, str], nn.Parameter]:
    return {
        (id(module), name): p
        for module in model.modules()
        for name, p in module._parameters.items()
        if p is not None
    }


def _check(name: str, parameter: Tensor) -> None:
    """Refuse a parameter that is not sharded by rows over one dimension of ranks."""
    from torch.distributed.tensor import Shard

    shard: DTensor = parameter  # type: ignore[assignment]
    if shard.device_mesh.ndim != 1 or tuple(shard.placements) != (Shard(0),):
        raise GradientError(
            f"a parameter {name!r} {list(shard.shape)} is placed as {tuple(shard.placements)} on a "
            f"mesh of {shard.device_mesh.ndim} dimensions; the engine takes models that "
            "fully_shard cuts by rows, Shard(0), over one dimension that holds all ranks: "
            'fully_shard(module, mesh=init_device_mesh("cuda", (world_size,)))'
        )


def _hand_on(places: TensorPlaces, old: Tensor, new: Tensor) -> None:
    info = places.info(old)
    if info is not None:
        TensorInfo(
            places,
            new,
            info.place,
            why=info.why,
            left_to_autograd=info.left_to_autograd,
            lost=info.lost,
        )


def failure_of_a_collective(error: BaseException) -> bool:
    """Whether an error says that another rank could not be reached."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in str(error) or "NCCL" in str(error))
    )
