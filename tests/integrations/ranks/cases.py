"""What the tests train by the Trainer and by Accelerate, on one rank or on several."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from transformers.distributed import DistributedConfig
from trl import SFTTrainer

import gradvac
from gradvac.integrations.accelerate import backward, without_wrapper
from gradvac.integrations.transformers import STATE_FILE, TaskGradients
from gradvac.integrations.trl import TaskSFTTrainer
from tests.integrations import sft, tiny

EXACT = dict(train_sampling_strategy="sequential", optim="sgd", learning_rate=0.1)
ON_ALL_RANKS = 8  # samples of a batch


@dataclass
class Case:
    """A run of the Trainer, by ours with a method or by the ordinary one without."""

    make: Callable[[], nn.Module]
    n_labels: int = tiny.V
    method: Callable[[], gradvac.Method] | None = None
    samples: int = 32
    per_sample: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def gradvac_() -> gradvac.Method:
    return gradvac.GradVac(beta=0.3)


def tagger() -> nn.Module:
    return tiny.tagger(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def classifier() -> nn.Module:
    return tiny.classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def t5() -> nn.Module:
    return tiny.t5(dropout_rate=0.0)


ACCUMULATED = {"gradient_accumulation_steps": 2}
PER_RANK = {"average_tokens_across_devices": False}
# The first ones are compared with one rank, the pairs with each other on two ranks.
AS_ONE = {
    "classifier": Case(classifier, tiny.CLASSES, gradvac_, per_sample=True, options=PER_RANK),
    "llama": Case(tiny.llama, method=gradvac_),
    "accumulated": Case(tiny.llama, method=gradvac.PCGrad, options=ACCUMULATED),
}
PAIRS = {
    "sums of means": Case(t5, samples=22),
    "tokens of all": Case(tiny.llama, samples=22, options=ACCUMULATED),
    "tokens of each": Case(tiny.llama, samples=22, options=PER_RANK),
    "not counted": Case(tagger, tiny.CLASSES, samples=22, options=ACCUMULATED),
}


def parameters(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def trained(case: Case, folder: Path, ranks: int, rank: int) -> dict[str, Any]:
    """Train a tiny model; what the Trainer logged and the parameters at the end."""
    model = tiny.built(case.make)
    if rank:  # of which rank 0's are taken
        nn.init.normal_(next(model.parameters()), std=0.1)
    data = tiny.samples(case.samples, case.n_labels, case.per_sample)
    kind, own = transformers.Trainer, {}
    if case.method is not None:
        kind, own = TaskGradients, {"method": case.method()}
    trainer = tiny.train(
        kind, model, data, folder, per_device_train_batch_size=ON_ALL_RANKS // ranks,
        per_device_eval_batch_size=4, save_strategy="steps", save_steps=2, **EXACT,
        **case.options, **own,
    )  # fmt: skip
    found = {"parameters": parameters(model), "log": trainer.state.log_history[:-1]}
    if case.method is not None:
        found["evaluated"] = trainer.evaluate(data[:11])
        found["saved"] = (folder / "checkpoint-2" / STATE_FILE).exists()
        found["method"] = trainer.task_engine.state_dict()["method"]
    AcceleratorState._reset_state(reset_partial_state=False)
    return found


def by_accelerate(ranks: int, ours: bool) -> Tensor:
    """Parameters after a loop of Accelerate with accumulation, by ours or by its own backward."""
    model = tiny.built(tagger)
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
    if ours:
        without_wrapper(accelerator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = tiny.samples(32, tiny.CLASSES)
    loader = torch.utils.data.DataLoader(data, batch_size=ON_ALL_RANKS // ranks)
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    engine = gradvac.Engine(model, gradvac.Joint()) if ours else None
    for batch in loader:
        with accelerator.accumulate(wrapped):
            if engine is None:
                accelerator.backward(losses_of(wrapped, batch).mean())
            else:
                with engine.tasks(batch["task"]):
                    losses = losses_of(wrapped, batch)
                    backward(accelerator, engine, losses / losses.numel())
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(wrapped.parameters(), 0.2)
            optimizer.step()
            optimizer.zero_grad()
    AcceleratorState._reset_state(reset_partial_state=False)
    return parameters(model)


def sharded_adapters(ranks: int, rank: int) -> Tensor:
    """Parameters of adapters after three steps in a loop of one's own, sharded on several ranks."""
    model = tiny.adapted(tiny.llama, LoraConfig(r=2, target_modules="all-linear"))
    data = tiny.samples(24)
    if ranks > 1:
        for layer in model.get_base_model().model.layers:
            fully_shard(layer)
        fully_shard(model)
    engine = gradvac.Engine(model, gradvac_())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for start in range(0, 24, ON_ALL_RANKS):
        own = data[start : start + ON_ALL_RANKS][rank::ranks]
        words = torch.stack([sample["input_ids"] for sample in own])
        with engine.tasks([sample["task"] for sample in own]):
            logits = model(input_ids=words).logits
            losses = F.cross_entropy(logits[:, :-1].mT, words[:, 1:], reduction="none")
            engine.backward(losses / ON_ALL_RANKS)
        optimizer.step()
        optimizer.zero_grad()
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([getattr(p, "full_tensor", p.clone)().detach().flatten() for p in trained])


def loaded_in_shards(folder: Path, rank: int) -> Any:
    """A model that transformers shards over all ranks as it loads it."""
    if rank == 0:
        tiny.built(tiny.llama).save_pretrained(folder / "model")
    dist.barrier()
    plan = DistributedConfig(fsdp_size=dist.get_world_size())
    kind = transformers.LlamaForCausalLM
    return kind.from_pretrained(folder / "model", distributed_config=plan, dtype=torch.float64)


def whole_parameters(model: nn.Module) -> Tensor:
    """All parameters, those in shards gathered."""
    full = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return torch.cat([p.detach().flatten() for p in full])


def sharded_at_load(
    folder: Path, rank: int, method: Callable[[], gradvac.Method] | None, adapters: bool = False
) -> dict[str, Any]:
    """What training a model in shards comes to, and the file that it is saved in."""
    model = loaded_in_shards(folder, rank)
    if adapters:
        torch.manual_seed(rank)  # rank 0's are taken
        own = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(model, own, autocast_adapter_dtype=False)
    trainer = tiny.train(
        transformers.Trainer if method is None else TaskGradients, model, tiny.samples(32), folder,
        per_device_train_batch_size=ON_ALL_RANKS // dist.get_world_size(), save_strategy="steps",
        save_steps=2, save_only_model=True, max_grad_norm=0.3, **ACCUMULATED, **EXACT,
        **({} if method is None else {"method": method()}),
    )  # fmt: skip
    found = {"parameters": whole_parameters(model), "log": trainer.state.log_history[:-1]}
    found["refused"] = method is not None and trainer.task_engine.refused
    if not adapters:
        trainer.save_model(str(folder / "saved"))
        saved = transformers.LlamaForCausalLM.from_pretrained(folder / "saved", dtype=torch.float64)
        found["saved"] = parameters(saved)
    AcceleratorState._reset_state(reset_partial_state=False)
    return found


def by_trl(
    kind: Any, folder: Path, ranks: int, model: Any = None, **own: Any
) -> tuple[Tensor, list[Any]]:
    """Parameters of adapters after training by a trainer of TRL, and what it logged."""
    trainer = sft.make(
        kind, model or tiny.built(tiny.llama), sft.texts(24), folder, gradient_accumulation_steps=2,
        per_device_train_batch_size=ON_ALL_RANKS // 2 // ranks, lr_scheduler_type="constant",
        peft_config=LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False), **own,
    )  # fmt: skip
    start = whole_parameters(trainer.model)
    trainer.train()
    AcceleratorState._reset_state(reset_partial_state=False)
    return whole_parameters(trainer.model) - start, trainer.state.log_history[:-1]


def losses_of(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    logits = model(input_ids=batch["input_ids"]).logits
    labels = batch["labels"].clamp(min=0)
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")


def on_ranks(folder: Path, rank: int, ranks: int) -> dict[str, Any]:
    """All that two ranks do in one start."""
    found: dict[str, Any] = {}
    for name, case in AS_ONE.items():
        found[name] = trained(case, folder / name, ranks, rank)
    for name, case in PAIRS.items():
        ours = deepcopy(case)
        ours.method = gradvac.Joint
        pair = trained(case, folder / name, ranks, rank), trained(ours, folder / "our", ranks, rank)
        found[name] = pair
    found["accelerate"] = by_accelerate(ranks, ours=False), by_accelerate(ranks, ours=True)
    found["trl"] = (
        by_trl(SFTTrainer, folder / "trl", ranks),
        by_trl(TaskSFTTrainer, folder / "trl", ranks, method=gradvac.Joint()),
    )
    found["sharded"] = sharded_adapters(ranks, rank)
    for name, method in (("plain", None), ("joint", gradvac.Joint), ("gradvac", gradvac_)):
        at_load = folder / f"at load {name}"
        at_load.mkdir(exist_ok=True)
        found[f"{name} at load"] = sharded_at_load(at_load, rank, method)
        if name != "gradvac":
            found[f"{name} adapters"] = sharded_at_load(at_load, rank, method, adapters=True)
    found["trl at load"] = tuple(
        by_trl(kind, folder / "trl", ranks, loaded_in_shards(folder, rank), **own)
        for kind, own in ((SFTTrainer, {}), (TaskSFTTrainer, {"method": gradvac.Joint()}))
    )
    case = deepcopy(AS_ONE["llama"])
    case.options = ACCUMULATED | {"max_grad_norm": 0.3}
    found["whole"] = trained(case, folder / "whole", ranks, rank)
    found["refused"] = refused(folder)
    return found


def refused(folder: Path) -> dict[str, str]:
    """What is said about models in wrappers, and about a stream read on rank 0 alone."""
    found: dict[str, str] = {}
    data = tiny.samples(8, tiny.CLASSES)

    def wrapped() -> None:
        accelerator, model = Accelerator(cpu=True), tiny.built(tagger)
        ours = accelerator.prepare_model(model)
        engine = gradvac.Engine(model, gradvac.Joint())
        with engine.tasks(tiny.TASKS[:2]):
            backward(accelerator, engine, ours(torch.ones(2, 3, dtype=torch.int64)).logits)

    def stream() -> None:
        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                return iter(data)

        own = dict(method=gradvac.Joint(), max_steps=1)
        tiny.train(TaskGradients, tiny.built(tagger), Stream(), folder, **own)

    for act in (wrapped, stream):
        try:
            act()
        except gradvac.GradientError as e:
            found[act.__name__] = str(e)
        AcceleratorState._reset_state(reset_partial_state=False)
    return found
