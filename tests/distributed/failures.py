"""What goes wrong on rank 1 of two, and what each of them says; one step after the other."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from gradvac.engine import Engine, PerTaskEngine, agreement, ranks
from gradvac.errors import GradvacError
from gradvac.methods import GradVac, Joint

X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
TASKS = ["a", "b", "a", "b"]


def build(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def step(engine: Engine, spoil: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss, **how):
    with engine.tasks(TASKS):
        return engine.backward(spoil(engine.model(X).squeeze(1).square()), **how)


def message(action: Callable[[], object]) -> str:
    try:
        action()
    except GradvacError as e:
        return f"{type(e).__name__}: {e}"
    return ""


def skipped(rank: int) -> list[object]:
    """The second of three steps has a NaN on rank 1."""
    model = build()
    engine = Engine(model, GradVac(), nonfinite="skip")
    found: list[object] = []
    for n in range(3):
        factor = float("nan") if rank and n == 1 else 1.0
        report = step(engine, lambda loss, factor=factor: loss * factor)
        found += [report.skipped, [p.grad is None for p in model.parameters()]]
    return [*found, [p.grad for p in model.parameters()], engine.step]


def raised(rank: int) -> list[object]:
    """The gradient of task b is not finite on rank 1, its loss is; then a good step."""
    model = build()
    engine = Engine(model, GradVac(), "whole_model")
    bad = torch.tensor([False, bool(rank), False, False])
    root = lambda loss: torch.where(bad, loss.square() * 0, 1.0).sqrt() * bad  # 0 * inf for b
    said = message(lambda: step(engine, lambda loss: loss + root(loss)))
    return [said, engine.step, step(engine).skipped, engine.step]


def forward_fails(rank: int) -> list[object]:
    engine = Engine(build(), Joint())

    def fail(loss: torch.Tensor) -> torch.Tensor:
        if rank:
            raise ValueError("sentence 7 has no end")
        return loss

    try:
        said = message(lambda: step(engine, fail))
    except ValueError as e:
        said = f"ValueError: {e}"
    return [said, step(engine).step]  # all of them may go on


def differs(rank: int, **change: object) -> str:
    arguments: dict = {"seed": 0, "granularity": "all_layer", "beta": 0.1, "nonfinite": "raise"}
    arguments |= change if rank else {}
    model = build(arguments["seed"])
    method = GradVac(beta=arguments["beta"])
    engine = Engine(model, method, arguments["granularity"], nonfinite=arguments["nonfinite"])
    return message(lambda: step(engine))


def other_code(rank: int) -> str:
    before = agreement._code
    agreement._code = lambda: f"code of {rank}"  # type: ignore[assignment]
    try:
        return differs(rank)
    finally:
        agreement._code = before


def per_task_of_one_rank(rank: int) -> list[object]:
    """Rank 0 has a loss for each task, rank 1 nothing; then nobody has."""
    model = build()
    engine = PerTaskEngine(model, Joint())
    if not rank:
        engine.accumulate("a", model(X).square().sum())
    report = engine.combine()
    return [report.tasks, [p.grad for p in model.parameters()], message(engine.combine)]


FAILURES: dict[str, Callable[[int], object]] = {
    "skipped": skipped,
    "raised": raised,
    "forward_fails": forward_fails,
    "seed": lambda rank: differs(rank, seed=1),
    "granularity": lambda rank: differs(rank, granularity="whole_model"),
    "beta": lambda rank: differs(rank, beta=0.2),
    "nonfinite": lambda rank: differs(rank, nonfinite="skip"),
    "code": other_code,
    "step": lambda rank: message(lambda: step(Engine(build(), Joint()), step=rank * 3)),
    "loss_scale": lambda rank: message(lambda: step(Engine(build(), Joint()), loss_scale=1 + rank)),
    "shares": lambda rank: message(
        lambda: step(Engine(build(), Joint()), shares={"a": 0.5, "b": 0.5} if rank else None)
    ),
    "passes": lambda rank: message(lambda: Engine(build(), Joint(), "whole_model", passes=2)),
    "budget": lambda rank: message(lambda: Engine(build(), Joint(), budget=0)),
    "sharded": lambda rank: message(lambda: Engine(sharded(), Joint())),
    "nobody": per_task_of_one_rank,
    "one": lambda rank: message(
        lambda: step(Engine(build(), Joint(), process_group=own_group(rank)))
    ),
}


def sharded() -> nn.Module:
    model = build()
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model


def own_group(rank: int) -> dist.ProcessGroup | None:
    """A group of one rank each, which is training on one process."""
    groups = [dist.new_group([r]) for r in range(dist.get_world_size())]
    return groups[rank]  # type: ignore[return-value]


def until_killed(rank: int, kill: Callable[[], None]) -> str:
    """Rank 1 is killed in its third forward pass; what rank 0 says."""
    ranks.ROLL_CALL = 2.0
    engine = Engine(build(), GradVac())

    def spoil(loss: torch.Tensor) -> torch.Tensor:
        if rank and engine.step == 2:
            kill()
        return loss

    for _ in range(3):
        said = message(lambda: step(engine, spoil))
    return said + " / " + message(lambda: step(engine))
