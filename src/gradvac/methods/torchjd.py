"""Any method of TorchJD that can work from a Gram matrix, applied to each group by our engines.

TorchJD (Quinton & Rey, arXiv 2406.16232) is an optional dependency: ``gradvac[torchjd]``. Its
weightings know tasks by row and, if they have memory, raise an error or forget when the number of
rows changes. Here rows are always in the alphabetical order of the task names, a weighting with
memory has one copy per parameter group, and a change of the tasks it remembers is an error.
"""

import copy
import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from gradvac.errors import GradientError
from gradvac.methods.base import Method, StepGeometry, check_keys
from gradvac.methods.orders import digest

# Weightings that take the gradients J but only use J J^T, so any J with the same J J^T works.
_ROTATION_INVARIANT = (
    "ConstantWeighting",
    "MeanWeighting",
    "RandomWeighting",
    "SumWeighting",
    "_NashMTLWeighting",
)


class TorchJD(Method):
    """Run a TorchJD weighting or aggregator on the Gram matrix of every group.

    Args:
        weighting: a ``torchjd.aggregation`` weighting (``UPGradWeighting()``), an aggregator
            made of one (``UPGrad()``), or the name of either ("UPGrad").
        options: arguments of the constructor, if ``weighting`` is a name. Vectors with one
            entry per task follow the alphabetical order of the task names.
        seed: of weightings that draw random numbers; their draws depend on (seed, step, group),
            and torch's global generator is not changed.

    Raises:
        GradientError: if TorchJD or what the weighting needs is not installed, the name is
            unknown or the weighting needs more than a Gram matrix. From ``weights``: if TorchJD
            rejects the matrix or returns weights that are not finite, or if a weighting with
            memory gets other tasks than it remembers; the state is then unchanged.

    Example:
        >>> import torch
        >>> from gradvac import StepGeometry, TorchJD
        >>> gram = torch.eye(2).double()[None]
        >>> step = StepGeometry(gram, torch.ones(2).double(), ("fr", "hi"), ("all",), step=0)
        >>> TorchJD("Mean").weights(step)
        tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """

    def __init__(
        self, weighting: Any, options: Mapping[str, Any] | None = None, seed: int = 0
    ) -> None:
        self.seed = seed
        self._prototype = _resolve(weighting, dict(options or {}))
        self._takes_rows = _takes_rows(self._prototype)
        stateful = importlib.import_module("torchjd").Stateful
        self._remembers = any(isinstance(m, stateful) for m in self._prototype.modules())
        self._copies: dict[str, nn.Module] = {}
        self._tasks: tuple[str, ...] = ()

    def _weights(self, geometry: StepGeometry) -> Tensor:
        order = sorted(range(len(geometry.tasks)), key=lambda n: geometry.tasks[n])
        names = tuple(geometry.tasks[n] for n in order)
        if self._remembers and self._copies and names != self._tasks:
            raise GradientError(
                f"{type(self._prototype).__name__} remembers tasks by row: it knows "
                f"{', '.join(self._tasks)} and step {geometry.step} has {', '.join(names)}. Use a "
                "weighting without memory, or let every batch hold every task"
            )
        gram = geometry.gram.cpu()[:, order][:, :, order]
        before = self.state_dict() if self._remembers else {}
        try:
            rows = [
                self._of_group(gram[k], group, names, geometry.step)
                for k, group in enumerate(geometry.groups)
            ]
        except BaseException:
            if self._remembers:
                self.load_state_dict(before)
            raise
        weights = torch.empty_like(geometry.gram[:, 0])
        weights[:, order] = torch.stack(rows).to(weights)
        return weights

    def _of_group(self, gram: Tensor, group: str, tasks: tuple[str, ...], step: int) -> Tensor:
        """Ask TorchJD for the weights of one group, ``[K]``."""
        weighting = self._prototype
        if self._remembers:
            self._tasks = tasks
            weighting = self._copies.setdefault(group, copy.deepcopy(self._prototype))
        where = f"TorchJD's {type(weighting).__name__}, group {group!r}, step {step}"
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            # Not torch.manual_seed, which reseeds every GPU and with it the model's dropout.
            torch.default_generator.manual_seed(digest(f"{self.seed} {step} {group}"))
            try:
                weights = weighting(_square_root(gram) if self._takes_rows else gram)
            except (ValueError, RuntimeError, ArithmeticError) as e:
                raise GradientError(f"{where}, tasks {', '.join(tasks)}: {e}") from e
        if not bool(weights.isfinite().all()):
            task = tasks[int((~weights.isfinite()).nonzero()[0])]
            raise GradientError(f"{where}: the weight of task {task!r} is not finite")
        return weights.double()

    def state_dict(self) -> dict[str, Any]:
        """Return seed, names and the memory of each group's copy."""
        memory = {str(k): _memory(copied) for k, copied in enumerate(self._copies.values())}
        return super().state_dict() | {
            "groups": list(self._copies),
            "tasks": list(self._tasks),
            "memory": memory,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where the method that returned ``state`` was.

        Raises:
            GradientError: if the state is of another method or weighting; nothing is then changed.
        """
        self._check_state(state)
        tasks, copies = tuple(state["tasks"]), dict[str, nn.Module]()
        for k, group in enumerate(state["groups"]):
            copied = copies[group] = copy.deepcopy(self._prototype)
            with torch.random.fork_rng(devices=[]):
                copied(torch.eye(len(tasks), dtype=torch.float64))  # creates its memory
            kind = type(self._prototype).__name__
            memory = state["memory"].get(str(k), {})
            check_keys(f"the memory of {kind} for group {group!r}", memory, _memory(copied))
            _remember(copied, memory)
        super().load_state_dict(state)
        self._tasks, self._copies = tasks, copies


def _resolve(weighting: Any, options: dict[str, Any]) -> nn.Module:
    """Find a weighting by name, make it, and take it out of an aggregator."""
    try:
        aggregation = importlib.import_module("torchjd.aggregation")
    except ImportError as e:
        raise GradientError(
            f"TorchJD is not installed; pip install 'gradvac[torchjd]' ({e})"
        ) from e
    if isinstance(weighting, str):
        if weighting not in aggregation.__all__:
            near = get_close_matches(weighting, aggregation.__all__, 1)
            raise GradientError(
                f"torchjd.aggregation has no {weighting!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
        try:
            weighting = getattr(aggregation, weighting)(**options)
        except (ImportError, TypeError, ValueError) as e:
            raise GradientError(f"torchjd.aggregation.{weighting}: {e}") from e
    elif options:
        raise GradientError(f"options {options} are for a weighting given by name")
    if isinstance(weighting, aggregation.Aggregator):
        aggregator, inner = weighting, getattr(weighting, "gramian_weighting", None)
        weighting = inner or getattr(weighting, "weighting", None)
        if not isinstance(aggregator, aggregation.WeightedAggregator):
            raise GradientError(
                f"TorchJD's {type(aggregator).__name__} is no weighted sum of task gradients that "
                "their Gram matrix decides"
            )
    if not isinstance(weighting, aggregation.Weighting):
        raise GradientError(f"weighting is {weighting!r}; it must be one of torchjd.aggregation")
    return weighting


def _takes_rows(weighting: nn.Module) -> bool:
    """Whether the weighting takes gradients (any with the right Gram matrix).

    Raises:
        GradientError: if it needs the gradients themselves or those of other batches.
    """
    kinds = [kind.__name__ for kind in type(weighting).__mro__]
    if "_GramianWeighting" in kinds:
        return False
    inner = getattr(weighting, "weighting", None)
    if "_MatrixWeighting" not in kinds:  # a wrapper, such as CR-MOGM's, or the user's own
        return isinstance(inner, nn.Module) and _takes_rows(inner)
    if type(weighting).__name__ not in _ROTATION_INVARIANT:
        raise GradientError(
            f"TorchJD's {type(weighting).__name__} needs more than the Gram matrix of one batch"
        )
    return True


def _square_root(gram: Tensor) -> Tensor:
    """Return J ``[K, K]`` with J J^T = gram."""
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp_min(0).sqrt()


def _numbers(module: nn.Module) -> dict[str, Any]:
    """The memory of a weighting: its buffers, and numbers that are not hyper-parameters."""
    own = {name: value for name, value in vars(module).items() if not name.startswith("__")}
    own = dict(module.named_buffers(recurse=False)) | own
    return {
        name: value
        for name, value in own.items()
        if (isinstance(value, (Tensor, int, float)) or type(value).__name__ == "ndarray")
        and not isinstance(value, bool)
        and not isinstance(getattr(type(module), name.removeprefix("_"), None), property)
    }


def _memory(weighting: nn.Module) -> dict[str, Tensor]:
    """Copy the memory of a weighting, by ``module/name``."""
    return {
        f"{path.replace('.', '/')}/{name}": torch.as_tensor(value).detach().clone()
        for path, module in weighting.named_modules()
        for name, value in _numbers(module).items()
    }


def _remember(weighting: nn.Module, memory: Mapping[str, Tensor]) -> None:
    """Undo ``_memory`` on a weighting that has been called once."""
    for path, module in weighting.named_modules():
        for name, value in _numbers(module).items():
            saved = memory[f"{path.replace('.', '/')}/{name}"].clone()
            if isinstance(value, Tensor):
                setattr(module, name, saved)
            elif isinstance(value, int | float):
                setattr(module, name, type(value)(saved.item()))
            else:
                setattr(module, name, saved.numpy())
