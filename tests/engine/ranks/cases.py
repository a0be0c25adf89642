"""Training steps that one process or several make alike: the same batches, split in some way."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrize import register_parametrization

from gradvac.engine import Engine
from gradvac.engine.ranks.group import Ranks
from gradvac.methods import CATS, FAMO, MGDA, GradNorm, GradVac, Joint, PCGrad, StaticWeights
from gradvac.methods.torchjd import TorchJD
from tests.engine.ranks.late import LateRanks
from tests.engine.test_per_task import TinyTranslator, V

TASKS = ("en-fr", "en-hi", "en-tr", "en-cs")
STEPS, FEW = 20, 4
LATE = 3  # ranks: so many that theirs are late

METHODS: dict[str, Callable[[], Any]] = {
    "joint": Joint,
    "gradvac": lambda: GradVac(beta=0.1),
    "pcgrad": PCGrad,
    "static": lambda: StaticWeights({task: 0.5 + n for n, task in enumerate(TASKS)}),
    "mgda": MGDA,
    "gradnorm": GradNorm,
    "cats": CATS,
    "famo": FAMO,
    "torchjd": lambda: TorchJD("IMTLG"),
}


class Translator(TinyTranslator):
    """With a bias of the softmax that belongs to one task, where a case wants that."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(V))


@dataclass(frozen=True, eq=False)
class Case:
    """A way to train.

    ``split`` says which rank gets which samples: every R-th, one stretch of the batch, which is
    sorted by task, one that is empty on the last rank now and then, or all samples of one task on
    each rank but the last. ``shard`` says what is given to fully_shard: nothing, every layer and
    then the model ("nested"), the model alone ("root"), every layer and nothing else ("layers"), or
    the model but for its embedding ("ignored").
    """

    method: str = "gradvac"
    granularity: str = "all_layer"
    split: str = "spread"
    kind: str = "backward"
    options: dict[str, Any] = field(default_factory=dict)
    shard: str = ""
    steps: int = STEPS

    @property
    def name(self) -> str:
        options = "-".join(f"{key}={value}" for key, value in self.options.items())
        return "-".join(
            filter(
                None, [self.method, self.granularity, self.split, self.kind, options, self.shard]
            )
        )


CASES = [
    *(Case(method) for method in METHODS),
    *(Case(granularity=g) for g in ("whole_model", "enc_dec", "all_matrix")),
    *(Case("gradnorm", g) for g in ("whole_model", "all_matrix")),
    Case(split="placed"),
    Case(split="placed", granularity="whole_model"),
    Case(split="ragged"),
    Case("gradnorm", split="ragged"),
    Case("pcgrad", "all_matrix", "ragged", "per_task"),
    Case("famo", split="placed", kind="per_task"),
    Case("gradvac", "enc_dec", "ragged", "accumulate"),
    Case("mgda", split="ragged", kind="accumulate"),
    Case(split="ragged", options={"budget": 300}),
    Case(split="ragged", options={"heads": {"en-tr": "bias"}}),
]
SHARDED = [
    Case(shard="nested"),
    Case("pcgrad", "all_matrix", "ragged", shard="root"),
    *(Case(method, shard="nested", steps=FEW) for method in METHODS if method != "gradvac"),
    *(Case(granularity=g, shard="nested", steps=FEW) for g in ("enc_dec", "all_matrix")),
    Case("gradnorm", "whole_model", "ragged", shard="nested", steps=FEW),
    Case(split="placed", granularity="whole_model", shard="root", steps=FEW),
    Case("pcgrad", "all_matrix", "ragged", "per_task", shard="nested", steps=FEW),
    Case("famo", split="placed", kind="per_task", shard="root", steps=FEW),
    Case("gradvac", "enc_dec", "ragged", "accumulate", shard="nested", steps=FEW),
    Case("mgda", split="ragged", kind="accumulate", shard="root", steps=FEW),
    Case(split="ragged", options={"budget": 300}, shard="nested", steps=FEW),
    Case(split="ragged", options={"heads": {"en-tr": "bias"}}, shard="nested", steps=FEW),
    Case(split="placed", options={"engine": "per_task"}, shard="nested", steps=FEW),
    Case("gradvac", split="ragged", kind="made", shard="nested", steps=FEW),
]
PARTLY = [Case(split="one", shard=shard, steps=FEW) for shard in ("layers", "ignored")]


def cases_of(size: int) -> list[Case]:
    """All cases for two processes; half each, for three and four, of those that depend on it."""
    if size == 2:
        return CASES + SHARDED + PARTLY
    some = [case for case in CASES if case.split != "spread"][size - 3 :: 2]
    return some + [case for case in SHARDED if case.split != "spread"][size - 3 :: 4] + PARTLY


def shard(model: nn.Module, how: str) -> nn.Module:
    """Give modules to fully_shard."""
    layers = [*model.encoder.layers, *model.decoder.layers]
    for layer in layers if how in ("nested", "layers") else []:
        fully_shard(layer)
    if how == "ignored":
        return fully_shard(model, ignored_params={model.embedding.weight})
    return model if how == "layers" else fully_shard(model)


def whole(tensors: Iterable[Tensor]) -> Tensor:
    """All numbers of some tensors, sharded or not."""
    found = [t.full_tensor() if isinstance(t, DTensor) else t for t in tensors]
    return nn.utils.parameters_to_vector(found).detach()


def batch(step: int) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Source, target and label of a batch, and the tasks; one task is missing every other step."""
    generator = torch.Generator().manual_seed(step)
    count = 9 + step % 4
    source, target, label = torch.randint(V, (3, count, 5), generator=generator).unbind(0)
    names = TASKS if step % 2 else TASKS[:3]
    drawn = torch.randint(len(names), (count,), generator=generator).sort().values
    return source, target, label, [names[k] for k in drawn.tolist()]


def part_of(split: str, tasks: list[str], step: int, rank: int, size: int) -> Tensor:
    """Samples of a rank; of a ragged batch the last rank has none now and then."""
    count = len(tasks)
    everything = torch.arange(count)
    if split == "one":
        place = torch.tensor([min(TASKS.index(task), size - 1) for task in tasks])
        return everything[place == rank]
    if split == "spread":
        return everything[rank::size]
    if split == "ragged" and size > 1 and step % 3 == 0:
        size -= 1
    parts = everything.tensor_split(size)
    return parts[rank] if rank < size else everything[:0]


def train(case: Case, rank: int = 0, size: int = 1) -> dict[str, Any]:
    """Train in float64; returns parameters, and Gram matrices and weights of all steps."""
    torch.manual_seed(0)
    model = Translator().double()
    if case.kind == "made":
        make_weights(model)
    shards = bool(case.shard) and dist.is_initialized()
    if shards:
        shard(model, case.shard)
    kind = LateRanks if size == LATE else Ranks
    ranks = kind(dist.group.WORLD, bucket=300) if size > 1 or shards else None  # several buckets
    options = {"process_group": ranks, **case.options}
    engine = Engine(model, METHODS[case.method](), case.granularity, **options)
    found: dict[str, Any] = {"gram": [], "weights": [], "losses": [], "parameters": []}
    for step in range(case.steps):
        report = one_step(engine, model, case, step, rank, size)
        order = sorted(range(len(report.tasks)), key=lambda k: report.tasks[k])
        found["gram"].append(report.gram[:, order][:, :, order])
        found["weights"].append(report.weights[:, order])
        found["losses"].append(report.losses[order])
        with torch.no_grad():
            for p in model.parameters():
                assert p.grad is None or isinstance(p.grad, DTensor) == isinstance(p, DTensor)
                p -= 0 if p.grad is None else 0.1 * p.grad
                p.grad = None
        found["parameters"].append(whole(model.parameters()))
    return found


def make_weights(model: nn.Module) -> None:
    """Let a layer compute its weight of another, whose values its gradient needs."""
    for layer in model.encoder.layers:
        register_parametrization(layer.linear1, "weight", Squared())


class Squared(nn.Module):
    """w + w^2 / 2."""

    def forward(self, w: Tensor) -> Tensor:
        return w + w * w / 2


def losses_of(model: nn.Module, case: Case, step: int, own: Tensor) -> Tensor:
    """Loss of each token of some samples, [B, T]."""
    source, target, label, tasks = batch(step)
    logits = model(source[own], target[own])
    if case.kind == "made":  # a parameter outside the forward pass, whose value its gradient needs
        logits = logits * (1 + model.bias + model.embedding.weight.mean(1))
    if "heads" in case.options:
        logits = logits + model.bias * torch.tensor([[[tasks[n] == "en-tr"]] for n in own])
    return cross_entropy(logits.mT, label[own], reduction="none") / label.numel()


def sharded_step(engine: Engine, model: nn.Module, case: Case, step: int, part: Tensor):
    """One step in which all ranks make the same passes, with samples that count or without."""
    tasks = batch(step)[3]
    pieces = list(part.tensor_split(2)) if case.kind == "accumulate" else [part]
    names = [tasks[n] for n in part.tolist()]
    shares = {task: names.count(task) / len(tasks) for task in names}
    for piece in pieces:
        counts = len(piece) > 0
        own = piece if counts else torch.tensor([0])
        names = [tasks[n] for n in own.tolist()]
        shares = shares if counts or shares else {names[0]: 0.0}
        if case.kind == "per_task":
            loss = losses_of(model, case, step, own).sum(1) * counts
            of = lambda task, names=names: torch.tensor([name == task for name in names])
            engine.accumulate({task: loss[of(task)].sum() for task in dict.fromkeys(names)})
            continue
        with engine.tasks(names):
            loss = losses_of(model, case, step, own)
            mask = torch.ones_like(loss) * counts
            if case.kind != "accumulate":
                return engine.backward(loss, mask=mask, shares=shares)
            engine.accumulate(loss, mask=mask)
    for task in engine._single_pass.step.names:
        shares.setdefault(task, 0.0)
    return engine.combine(shares=shares)


def one_step(engine: Engine, model: nn.Module, case: Case, step: int, rank: int, size: int):
    """One step of the engine on this rank's part of a batch."""
    _, _, label, tasks = batch(step)
    tokens = label.numel()
    part = part_of(case.split, tasks, step, rank, size)
    if case.shard and dist.is_initialized():
        return sharded_step(engine, model, case, step, part)
    names = [tasks[n] for n in part.tolist()]
    shares = {task: names.count(task) * label.shape[1] / tokens for task in names}

    losses = lambda own: losses_of(model, case, step, own)
    if case.kind in ("backward", "made") and names:
        with engine.tasks(names):
            return engine.backward(losses(part), shares=shares)
    if case.kind == "per_task":
        for task in dict.fromkeys(names):
            own = part[[name == task for name in names]]
            engine.accumulate({task: losses(own).sum()})
    if case.kind == "accumulate":
        for half in part.tensor_split(2):
            if len(half):
                with engine.tasks([tasks[n] for n in half.tolist()]):
                    engine.accumulate(losses(half))
    return engine.combine(shares=shares)
