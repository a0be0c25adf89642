"""Training steps that one process or several make alike: the same batches, split in some way."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradvac.engine import Engine
from gradvac.engine.ranks import Ranks
from gradvac.methods import CATS, FAMO, MGDA, GradNorm, GradVac, Joint, PCGrad, StaticWeights
from gradvac.methods.torchjd import TorchJD
from tests.engine.test_per_task import TinyTranslator, V

TASKS = ("en-fr", "en-hi", "en-tr", "en-cs")
STEPS = 20

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
    sorted by task, or one that is empty on the last rank now and then.
    """

    method: str = "gradvac"
    granularity: str = "all_layer"
    split: str = "spread"
    kind: str = "backward"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        options = "-".join(f"{key}={value}" for key, value in self.options.items())
        return "-".join(
            filter(None, [self.method, self.granularity, self.split, self.kind, options])
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


def cases_of(size: int) -> list[Case]:
    """All cases for two processes; half each, for three and four, of those that depend on it."""
    return CASES if size == 2 else [case for case in CASES if case.split != "spread"][size - 3 :: 2]


def batch(step: int) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Source, target and label of a batch, and the tasks; one task is missing every other step."""
    generator = torch.Generator().manual_seed(step)
    count = 9 + step % 4
    source, target, label = torch.randint(V, (3, count, 5), generator=generator).unbind(0)
    names = TASKS if step % 2 else TASKS[:3]
    drawn = torch.randint(len(names), (count,), generator=generator).sort().values
    return source, target, label, [names[k] for k in drawn.tolist()]


def part_of(split: str, count: int, step: int, rank: int, size: int) -> Tensor:
    """Samples of a rank; of a ragged batch the last rank has none now and then."""
    everything = torch.arange(count)
    if split == "spread":
        return everything[rank::size]
    if split == "ragged" and size > 1 and step % 3 == 0:
        size -= 1
    parts = everything.tensor_split(size)
    return parts[rank] if rank < size else everything[:0]


def train(case: Case, rank: int = 0, size: int = 1, steps: int = STEPS) -> dict[str, Any]:
    """Train in float64; returns parameters, and Gram matrices and weights of all steps."""
    torch.manual_seed(0)
    model = Translator().double()
    ranks = Ranks(dist.group.WORLD, bucket=300) if size > 1 else None  # several buckets
    options = {"process_group": ranks, **case.options}
    engine = Engine(model, METHODS[case.method](), case.granularity, **options)
    found: dict[str, Any] = {"gram": [], "weights": [], "losses": []}
    for step in range(steps):
        report = one_step(engine, model, case, step, rank, size)
        order = sorted(range(len(report.tasks)), key=lambda k: report.tasks[k])
        found["gram"].append(report.gram[:, order][:, :, order])
        found["weights"].append(report.weights[:, order])
        found["losses"].append(report.losses[order])
        with torch.no_grad():
            for p in model.parameters():
                p -= 0 if p.grad is None else 0.1 * p.grad
    found["parameters"] = nn.utils.parameters_to_vector(model.parameters()).detach()
    return found


def one_step(engine: Engine, model: nn.Module, case: Case, step: int, rank: int, size: int):
    """One step of the engine on this rank's part of a batch."""
    source, target, label, tasks = batch(step)
    tokens = label.numel()
    part = part_of(case.split, len(source), step, rank, size)
    names = [tasks[n] for n in part.tolist()]
    shares = {task: names.count(task) * label.shape[1] / tokens for task in names}

    def losses(own: Tensor) -> Tensor:
        """Loss of each token of some samples, [B, T]."""
        logits = model(source[own], target[own])
        if "heads" in case.options:
            logits = logits + model.bias * torch.tensor([[[tasks[n] == "en-tr"]] for n in own])
        return cross_entropy(logits.mT, label[own], reduction="none") / tokens

    if case.kind == "backward" and names:
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
