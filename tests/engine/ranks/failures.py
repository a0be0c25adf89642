"""What goes wrong on rank 1 of two, and what each of them says; one step after the other."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from gradvac.engine import Engine, PerTaskEngine
from gradvac.engine.backward_passes import BackwardPasses
from gradvac.engine.ranks import agreement
from gradvac.engine.ranks import group as ranks
from gradvac.engine.ranks import heartbeats as signs
from gradvac.engine.ranks.reduction import Reduction
from gradvac.errors import GradvacError
from gradvac.experiment.run.shards import empty_like, read_shards, shapes, write_shards
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
    "lazy": lambda rank: message(lambda: Engine(build(), Joint(), lazy=True)),
    "lazy_sharded": lambda rank: message(lambda: Engine(sharded(), Joint(), lazy=True)),
    "other_dimension": lambda rank: message(lambda: Engine(sharded(dim=1), Joint())),
    "replicas": lambda rank: message(lambda: Engine(sharded(replicas=True), Joint())),
    "other_ranks": lambda rank: message(
        lambda: Engine(sharded(), Joint(), process_group=own_group(rank))
    ),
    "tensor_parallel": lambda rank: message(lambda: Engine(tensor_parallel(), Joint())),
    "tensor_parallel_beside": lambda rank: message(
        lambda: Engine(tensor_parallel(beside=True), Joint())
    ),
    "tensor_parallel_names": lambda rank: message(
        lambda: PerTaskEngine(list(tensor_parallel().named_parameters()), Joint())
    ),
    "no_samples": lambda rank: message(Engine(sharded(), Joint()).combine),
    "no_task": lambda rank: message(PerTaskEngine(sharded(), Joint()).combine),
    "sharded_skipped": lambda rank: sharded_goes_on(rank, "skip"),
    "sharded_raised": lambda rank: sharded_goes_on(rank, "raise"),
    "streams": lambda rank: streams(rank),
    "alone": lambda rank: alone_with_shards(rank),
    "checkpoint": lambda rank: checkpoint_of_others(rank),
    "side_group": lambda rank: side_group(rank),
    "reduction": lambda rank: reduction(rank),
    "nobody": per_task_of_one_rank,
    "one": lambda rank: message(
        lambda: step(Engine(build(), Joint(), process_group=own_group(rank)))
    ),
}


def sharded(dim: int = 0, replicas: bool = False, each: bool = False) -> nn.Module:
    model = build()
    if dim:
        model = nn.Sequential(nn.Linear(4, 4, bias=False)).double()
    size = dist.get_world_size()
    shape, names = ((size, 1), ("replicas", "shards")) if replicas else ((size,), ("shards",))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for layer in model if each else []:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh, shard_placement_fn=lambda p: Shard(dim))


def tensor_parallel(beside: bool = False) -> nn.Module:
    """The first layer cut by columns; ``beside`` a last layer that is given to fully_shard."""
    model = build()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(model[0], mesh, ColwiseParallel())
    if beside:
        fully_shard(model[2], mesh=mesh)
    return model


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.full_tensor() for p in model.parameters()]  # type: ignore[union-attr]


def sharded_goes_on(rank: int, policy: Literal["raise", "skip"]) -> list[object]:
    """A step that is not finite on rank 1 between two good ones, amid a backward pass."""
    model = sharded(each=True)
    group = ranks.Ranks(dist.group.WORLD, bucket=3)  # type: ignore[arg-type]
    engine = Engine(model, GradVac(), "all_matrix", nonfinite=policy, process_group=group)
    step(engine)
    first, bad = gradients(model), float("nan") if rank else 1.0
    said = message(lambda: step(engine, lambda loss: loss * bad))
    left = [p.grad is None for p in model.parameters()]
    model.zero_grad()
    report = step(engine)
    return [said, left, report.step, first, gradients(model)]


def streams(rank: int) -> list[object]:
    """What of a sharded model is launched before its backward pass ends, with tasks as given."""
    found: list[object] = []
    for tasks in (TASKS, ["a"] * 4 if rank else TASKS):
        model = sharded(each=True)
        group = ranks.Ranks(dist.group.WORLD, bucket=3)  # type: ignore[arg-type]
        engine = Engine(model, GradVac(), "all_matrix", process_group=group, verify_steps=0)
        launched: list[int] = []
        inputs = X.clone().requires_grad_()  # its gradient is the last to come
        with engine.tasks(tasks):
            loss = model(inputs).squeeze(1).square()
        now = lambda _, e=engine, seen=launched: seen.append(
            e._single_pass.collector._exchange.launched
        )
        inputs.register_hook(now)
        run = BackwardPasses.run
        BackwardPasses.run = reaching(run, inputs)  # type: ignore[method-assign]
        engine.backward(loss)
        BackwardPasses.run = run  # type: ignore[method-assign]
        found.append([launched, {type(p.grad).__name__ for p in model.parameters()}])
    return found


def reaching(run: Callable, inputs: torch.Tensor) -> Callable:
    """A backward pass that goes on to the inputs."""
    return lambda passes, factors, parameters, *rest: run(
        passes, factors, [*parameters, inputs], *rest
    )[:-1]


def reduction(rank: int) -> list[object]:
    """Plain gradients of samples on both ranks, and on rank 0 alone; and what was sent when."""
    model = nn.ModuleDict({"unused": nn.Linear(2, 2).double(), "used": build()})
    group = ranks.Ranks(dist.group.WORLD, bucket=3)  # type: ignore[arg-type]
    found = Reduction(group, list(model.parameters()))
    said: list[object] = []
    for own in (X[rank::2], X if not rank else X[:0]):
        model.zero_grad()
        launched: list[int] = []
        inputs = own.clone().requires_grad_()  # its gradient is the last to come
        inputs.register_hook(lambda _, seen=launched: seen.append(len(found._waits)))
        if len(own):
            with found.during():
                model["used"](inputs).square().sum().backward()
        found.finish()
        said.append([launched, len(found.buckets), [p.grad for p in model.parameters()]])
    return said


def side_group(rank: int) -> list[object]:
    """What hosts say where the group of the gradients takes no tensors of the host, as NCCL's."""
    before = dist.get_backend_config
    dist.get_backend_config = lambda group=None: "cuda:nccl"
    try:
        group, again = (ranks.Ranks(dist.group.WORLD) for _ in range(2))  # type: ignore[arg-type]
        found = [group._control is not group.group, group._control is again._control]
        said = [each["n"] for each in group.messages({"n": rank, "long": "x" * 3000})]
        made, rooms = [], ranks.Ranks._bytes
        ranks.Ranks._bytes = lambda self, data: made.append(1) or rooms(self, data)
        group.messages({"n": rank, "long": "x" * 2000})
        ranks.Ranks._bytes = rooms
        return [*found, said, len(made), message(lambda: step(Engine(build(), Joint(),
            process_group=group)))]  # fmt: skip
    finally:
        dist.get_backend_config = before


def alone_with_shards(rank: int) -> list[object]:
    """A model that one rank of a group of its own shards all to itself."""
    group = own_group(rank)
    mesh = DeviceMesh.from_group(group, "cpu")  # type: ignore[arg-type]
    model, plain = fully_shard(build(), mesh=mesh), build()
    step(Engine(model, GradVac(), process_group=group))
    step(Engine(plain, GradVac(), process_group=group))
    return [gradients(model), [p.grad for p in plain.parameters()]]


def checkpoint_of_others(rank: int) -> list[object]:
    """What two ranks wrote, read by one that keeps all rows."""
    folder = Path(sys.argv[3]) / "shards"
    model = sharded(each=True)
    tensors = dict(model.state_dict()) | {"step": torch.tensor(3.0)}
    write_shards(folder, tensors)
    dist.barrier()
    mesh = DeviceMesh.from_group(own_group(rank), "cpu")  # type: ignore[arg-type]
    other = fully_shard(build(seed=1), mesh=mesh)
    into = {name: empty_like(value) for name, value in other.state_dict().items()}
    read_shards(folder, into)
    other.load_state_dict(into)
    read = [p.full_tensor() for p in other.parameters()]  # type: ignore[attr-defined]
    return [read, list(build().parameters()), sorted(shapes(folder))]


def own_group(rank: int) -> dist.ProcessGroup | None:
    """A group of one rank each, which is training on one process."""
    groups = [dist.new_group([r]) for r in range(dist.get_world_size())]
    return groups[rank]  # type: ignore[return-value]


def until_failed(rank: int) -> tuple[str, float]:
    """Rank 1 fails in its third forward pass, while rank 0 gathers parameters.

    Returns what they say, in that step and the next, and the seconds it took.
    """
    engine = Engine(sharded(each=True), GradVac())

    def fail(module: nn.Module, args: object) -> None:
        if rank and engine.step == 2:
            raise ValueError("sentence 7 has no end")

    engine.model[1].register_forward_pre_hook(fail)  # type: ignore[index, union-attr]
    started = time.monotonic()
    try:
        said = [message(lambda: step(engine)) for _ in range(3)][2]
    except ValueError as e:
        said = f"ValueError: {e}"
    return f"{said} / {message(lambda: step(engine))}", time.monotonic() - started


def until_killed(rank: int, kill: Callable[[], None]) -> str:
    """Rank 1 is killed in its third forward pass; what rank 0 says."""
    signs.ROLL_CALL = 2.0
    engine = Engine(build(), GradVac())

    def spoil(loss: torch.Tensor) -> torch.Tensor:
        if rank and engine.step == 2:
            kill()
        return loss

    for _ in range(3):
        said = message(lambda: step(engine, spoil))
    return said + " / " + message(lambda: step(engine))
