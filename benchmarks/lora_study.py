"""Adapters of a real model on four tasks: loss by task, conflicts by layer, time and memory.

SmolLM2-135M-Instruct learns to translate strings of programs from English into French, Spanish,
Czech and Turkish by LoRA. Each language is a task. Joint training and GradVac, by TaskSFTTrainer,
have the same parameters, text and order of each seed; the cost of both stands beside the plain
SFTTrainer of TRL, in one run whose rounds alternate. docs/tutorial-lora.md explains it; its tables
and its picture are written by this command.

    python -m benchmarks.lora_study [--quick] [--json FILE] [--page FILE] [--pictures FOLDER]
                                    [--folder runs/lora] [--seeds 3] [--steps N] [--rounds 3]
                                    [--only cost|losses] [--workers 1] [--threads 1]
                                    [--written FILE]

--quick: a random model of two layers, some seconds, without a download. --only: one part; the other
is kept if FILE has it. --written FILE: run nothing, write page and picture from this file. What it
needs beside gradvac[trl,toolkit]: see lora_material.py.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import shutil
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks import lora_material as material
from benchmarks.lora_page import conflicts_picture, write_page
from benchmarks.measuring import Memory, keep_freed_memory
from gradvac import GradVac, Joint
from gradvac.integrations.trl import TaskSFTTrainer

METHODS = {"joint": Joint, "gradvac": GradVac}
ADAPTER = dict(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


@dataclass(frozen=True)
class Size:
    """How long the runs are.

    Attributes:
        steps: of a run.
        timed: steps of a run that only measures the cost, after the first ones.
        samples: strings of a padded step.
        length: tokens of a packed row, a step.
        longest: letters of the longest English string.
        timed_longest: the same, of a run that only measures the cost.
        train: strings of each language.
        test: the same, of the test set.
        rate: learning rate, constant.
        bf16: whether forward passes are under autocast.
    """

    steps: int
    timed: int
    samples: int
    length: int
    longest: int
    timed_longest: int
    train: int
    test: int
    rate: float
    bf16: bool


SIZES = {
    "smollm2": Size(40, 4, 8, 384, 80, 160, 200, 6, 1e-3, bf16=True),
    "quick": Size(4, 1, 8, 1536, 80, 160, 24, 4, 1e-2, bf16=False),
}
FIRST = 3
"""Steps in which the engine checks its gradients and records what the model does."""


class Watch(TrainerCallback):
    """CPU seconds and peak memory (MiB above the built model) of the steps of a run."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.peaks: list[float] = []
        self.begin()

    def begin(self) -> None:
        """Take the memory in use now for that of the built model."""
        self._memory = Memory("cpu")
        self._start = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._memory.forget_peak()
        self._start = time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.process_time() - self._start)
        self.peaks.append(self._memory.peak())


class Geometry(TrainerCallback):
    """The cosines of the task gradients of every step, [groups, K, K], tasks by name."""

    trainer: Any

    def __init__(self) -> None:
        self.cosines: list[torch.Tensor] = []
        self.groups: list[str] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        report = self.trainer.report
        assert report is not None
        found = torch.full((len(report.groups), *[len(material.LANGUAGES)] * 2), torch.nan)
        at = torch.tensor([list(material.LANGUAGES).index(task) for task in report.tasks])
        found[:, at[:, None], at] = report.cosine.float()
        self.groups = list(report.groups)
        self.cosines.append(found)


def trainer_of(
    method: str,
    base: Path,
    size: Size,
    seed: int,
    callback: TrainerCallback,
    cost: bool = False,
    packed: bool = True,
) -> Any:
    """Return the trainer of a method, or the plain SFTTrainer for ``plain``."""
    steps = FIRST + size.timed if cost else size.steps
    longest = size.timed_longest if cost else size.longest
    model, tokenizer = material.load(base)
    model.name_or_path = str(base)  # which the adapter names as its base
    args = SFTConfig(
        str(base.parent / "trainer"), max_steps=steps, seed=seed, learning_rate=size.rate,
        lr_scheduler_type="constant", packing=packed, eval_packing=False,
        max_length=size.length, per_device_train_batch_size=1 if packed else size.samples,
        per_device_eval_batch_size=4, bf16=size.bf16,
        activation_checkpointing=False, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True, logging_steps=steps,
    )  # fmt: skip
    kind, own = (SFTTrainer, {}) if method == "plain" else (TaskSFTTrainer, {})
    if method != "plain":
        own = {"method": METHODS[method]()}
    train = Dataset.from_list(material.texts("train", size.train, seed, longest))
    test = Dataset.from_list(material.texts("test", size.test, 0))
    if method == "plain":
        train, test = train.remove_columns("task"), test.remove_columns("task")
    return kind(
        model, args, train_dataset=train, eval_dataset=test, processing_class=tokenizer,
        peft_config=LoraConfig(**ADAPTER), callbacks=[callback], **own,
    )  # fmt: skip


def losses_of(trainer: Any) -> dict[str, float]:
    """Return the test loss per token of each language."""
    found = trainer.evaluate()
    return {task: found[f"eval_loss_{task}"] for task in material.LANGUAGES}


def study(base: Path, size: Size, seeds: int, workers: int) -> dict[str, Any]:
    """Train both methods with every seed; losses by task, cosines by layer."""
    chosen = [(seed, name) for seed in range(seeds) for name in METHODS]
    tasks = [(base, size, *each, torch.get_num_threads()) for each in chosen]
    if workers > 1:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            parts = list(pool.map(of_run, *zip(*tasks, strict=True)))
    else:
        parts = [of_run(*task) for task in tasks]
    found: dict[str, Any] = {"runs": [run for run, _, _ in parts]}
    for _, shown, _ in parts:
        found |= shown
    joint = [geometry for run, _, geometry in parts if run["method"] == "joint"]
    return {**found, "conflicts": conflicts(joint)}  # gradients at the parameters of joint training


def of_run(
    base: Path, size: Size, seed: int, name: str, threads: int
) -> tuple[dict[str, Any], dict[str, Any], Geometry]:
    """Train once; its test losses, what the first seed shows besides, and its cosines."""
    torch.set_num_threads(threads)
    geometry, shown = Geometry(), {}
    trainer = trainer_of(name, base, size, seed, geometry)
    geometry.trainer = trainer
    if seed == 0 and name == "joint":
        shown["before"] = losses_of(trainer)
    trainer.train()
    run = {"method": name, "seed": seed, "losses": losses_of(trainer)}
    print(run, flush=True)
    if seed == 0 and name == "gradvac":
        shown["reloaded"] = reloaded(trainer, base)
    geometry.trainer = None
    del trainer
    gc.collect()
    return run, shown, geometry


def conflicts(geometries: Sequence[Geometry]) -> dict[str, Any]:
    """By layer and pair of tasks: mean cosine over steps, and in how many steps it is negative."""
    cosine = torch.stack([each for g in geometries for each in g.cosines])  # [steps, groups, K, K]
    names = list(material.LANGUAGES)
    pairs = [(a, b) for a in range(len(names)) for b in range(a)]
    own = torch.stack([cosine[:, :, a, b] for a, b in pairs], dim=-1)  # [steps, groups, pairs]
    negative = (own < 0).float().where(own.isfinite(), torch.nan)
    rounded = lambda x: [[round(v, 4) for v in row] for row in x.nanmean(0).tolist()]
    return {
        "groups": geometries[0].groups,
        "pairs": [f"{names[b]}-{names[a]}" for a, b in pairs],
        "cosine": rounded(own),
        "negative": rounded(negative),
        "steps": len(cosine),
    }


@torch.no_grad()
def reloaded(trainer: Any, base: Path) -> float:
    """Save the adapter, read it by PEFT alone; the largest difference of a logit, in float32."""
    folder = base.parent / "adapter"
    trainer.save_model(str(folder))
    again = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    words = torch.arange(16)[None] + 20
    return float((again(input_ids=words).logits - model(input_ids=words).logits).abs().max())


def cost(base: Path, size: Size, rounds: int) -> dict[str, Any]:
    """CPU seconds and peaks (MiB) of the steps of each trainer, [rounds, steps], in turn."""
    empty = lambda: {name: {"seconds": [], "mib": []} for name in ("plain", "joint", "gradvac")}
    seen: dict[str, Any] = {"packed": empty(), "padded": empty()}
    for number in range(rounds):
        for rows, trainers in seen.items():
            for name, own in trainers.items():
                watch = Watch()
                trainer = trainer_of(name, base, size, 0, watch, True, rows == "packed")
                watch.begin()
                trainer.train()
                own["seconds"].append(watch.seconds)
                own["mib"].append(watch.peaks)
                print("round", number, rows, name, watch.seconds, watch.peaks, flush=True)
                del trainer
                gc.collect()
    return seen


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny random model, some seconds")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    parser.add_argument("--page", type=Path, help="write the tables into this page")
    parser.add_argument("--pictures", type=Path, help="write the picture into this folder")
    parser.add_argument("--folder", type=Path, default=Path("runs/lora"), help="model and adapter")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="runs at once, of 2 GB each")
    parser.add_argument("--steps", type=int, help="steps of a run")
    parser.add_argument("--rounds", type=int, help="rounds of the measurement of the cost")
    parser.add_argument("--only", choices=["cost", "losses"], help="run one part")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--written", type=Path, help="run nothing; write from this file")
    return parser.parse_args()


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Run what was asked for; what was found, with what the file had before."""
    name = "quick" if args.quick else "smollm2"
    size = SIZES[name]
    if args.steps:
        size = Size(**{**vars(size), "steps": args.steps})
    base = args.folder / name
    (material.write_tiny if args.quick else material.write_smollm2)(base)
    found = json.loads(args.json.read_text()) if args.only and args.json.exists() else {}
    packages = ("torch", "transformers", "trl", "peft")
    found["versions"] = {package: version(package) for package in packages}
    found["model"], found["size"] = name, vars(size)
    if args.only != "losses":
        keep_freed_memory()
        found["cost"] = cost(base, size, args.rounds or (1 if args.quick else 3))
    if args.only != "cost":
        found["losses"] = study(base, size, args.seeds, args.workers)
    shutil.rmtree(base.parent / "trainer", ignore_errors=True)
    return found


def main() -> None:
    args = arguments()
    if args.written:
        found = json.loads(args.written.read_text(encoding="utf-8"))
    else:
        torch.set_num_threads(args.threads)
        with warnings.catch_warnings():  # PEFT 0.21 asks transformers 5.23 for an old name
            warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
            found = measured(args)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if args.page:
        args.page.write_text(write_page(args.page.read_text(encoding="utf-8"), found), "utf-8")
    if args.pictures:
        conflicts_picture(found["losses"]["conflicts"], args.pictures / "lora-conflicts.png")


if __name__ == "__main__":
    main()
