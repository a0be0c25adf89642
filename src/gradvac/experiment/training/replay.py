"""Steps with a loss or gradient that is not finite: saved, to be repeated later.

``replay/step-00000005.safetensors`` has the parameters before the step and its batches, the
``.json`` beside it everything else that the step depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradvac.engine.groups import parameter_groups
from gradvac.errors import NotFiniteError, RunError
from gradvac.experiment.run.checkpoint import load_tensors, save_tensors
from gradvac.experiment.run.folder import fill
from gradvac.experiment.training.job import Job, TaskBatch
from gradvac.experiment.training.kind import job_of
from gradvac.experiment.training.memory import tensors_of, with_tensors
from gradvac.reading import read_json
from gradvac.writing import replacing, write_json

# Saved steps per run. Chosen here: the first are the most useful; each is as large as the model.
MOST_KEPT = 3
_SHOWN = 8  # sentences listed in a message; the file lists all


def step_seed(seed: int, step: int) -> int:
    """The random seed of one step, very different from those of adjacent steps."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9) % 2**63


@torch.no_grad()
def suspects(
    job: Job[Any], batches: Sequence[TaskBatch], step: int, task: str
) -> dict[str, list[int]]:
    """By task, the indices in its corpus of the sentences whose loss is not finite.

    If all losses are finite and only the gradient is not: all sentences of ``task``.
    """
    torch.manual_seed(step_seed(job.recipe.seed, step))
    found: dict[str, list[int]] = {}
    of_task: dict[str, list[int]] = {}
    for batch in batches:
        _, nll, rows = job.losses(batch.to(job.device))
        bad = set(rows[~nll.isfinite()].tolist())
        numbers = getattr(batch, "sentence", torch.arange(len(batch.task))).tolist()
        for row, (index, number) in enumerate(zip(batch.task.tolist(), numbers, strict=True)):
            name = batch.tasks[index]
            if row in bad:
                found.setdefault(name, []).append(number)
            if task in (name, ""):
                of_task.setdefault(name, []).append(number)
    return found or of_task


def in_words(sentences: Mapping[str, Sequence[int]]) -> str:
    """``sentences 3, 17 of ne-en``; the file of a step lists all."""
    parts = []
    for task, numbers in sentences.items():
        more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
        parts.append(f"{', '.join(map(str, numbers[:_SHOWN]))}{more} of {task}")
    return f"training sentences {'; '.join(parts)}"


def keep(
    job: Job[Any],
    batches: Sequence[TaskBatch],
    step: int,
    learned: Mapping[str, Any],
    error: NotFiniteError,
) -> str:
    """Save a failed step in the run's folder, up to a limit; returns a message.

    ``learned`` is the state of the job before it began the step.
    """
    sentences = suspects(job, batches, step, error.task)
    words = in_words(sentences)
    folder = job.folder / "replay"
    file = folder / f"step-{step:08d}.safetensors"
    if not file.exists() and len(list(folder.glob("step-*.safetensors"))) >= MOST_KEPT:
        return f"{words}; {MOST_KEPT} steps are kept in {folder} already"
    tensors = {f"model/{name}": p for name, p in job.model.state_dict().items()}
    for number, batch in enumerate(batches):
        tensors |= {f"batch/{number}/{name}": x for name, x in tensors_of(batch).items()}
    state = {
        "step": step,
        "seed": job.recipe.seed,
        "message": str(error),
        "task": error.task,
        "group": error.group,
        "sentences": sentences,
        "batches": len(batches),
        "learned": dict(learned),
        **job.identity,
    }
    try:
        folder.mkdir(exist_ok=True)
        with replacing(file) as new:  # last: it marks the step as complete
            save_tensors({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, new)
            write_json(file.with_suffix(".json"), state, indent=None)
    except OSError as e:
        return f"{words}; the step could not be kept in {folder}: {e.strerror}"
    return f"{words}; kept: gradvac replay {job.folder} {step}"


@dataclass(frozen=True)
class Replay:
    """A saved step."""

    file: Path
    state: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def open(cls, run: Path, step: int | None) -> Replay:
        """Open a saved step, by default the first; RunError lists the existing ones."""
        files = sorted((run / "replay").glob("step-*.safetensors"))
        there = {int(f.stem.removeprefix("step-")): f for f in files if f.stem[5:].isdecimal()}
        if not there:
            raise RunError(f"{run}: no step is kept in {run / 'replay'}: none was not finite")
        if step is not None and step not in there:
            raise RunError(f"{run}: step {step} is not kept; there: {', '.join(map(str, there))}")
        file = there[min(there) if step is None else step]
        try:
            state = read_json(file.with_suffix(".json"))
            step, count, seed = (int(state[key]) for key in ("step", "batches", "seed"))
            state |= {"learned": dict(state["learned"]), "message": str(state["message"])}
        except (ValueError, LookupError, TypeError, OverflowError) as e:
            raise RunError(f"{file.with_suffix('.json')}: not a kept step: {e}") from e
        return cls(
            file, {**state, "step": step, "batches": count, "seed": seed}, load_tensors(file)
        )

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with ``prefix``, by the rest of the name."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def batches_of(self, job: Job[Any]) -> list[TaskBatch]:
        """The batches of the step; RunError if they are of another kind of job."""
        like, found = job.batch(0), []
        for number in range(self.state["batches"]):
            own = self.part(f"batch/{number}/")
            if own.keys() != tensors_of(like).keys():
                raise RunError(f"{self.file}: batch {number} is not one of this run: {sorted(own)}")
            names = iter(tensors_of(like))
            found.append(with_tensors(like, lambda _, names=names, own=own: own[next(names)]))
        return [batch.to(job.device) for batch in found]


def replay(job: Job[Any], kept: Replay, say: Callable[[str], None]) -> bool:
    """Repeat a step with its parameters, batches and random numbers; whether it fails again.

    Reports for every task whether its loss and its gradient are finite, and the first module, layer
    and parameter group with values that are not finite.
    """
    for key, value in job.identity.items():
        if kept.state.get(key) != value:
            raise RunError(f"{kept.file}: its {key} is not that of {job.folder}")
    step, model = kept.state["step"], job.model
    fill(model, kept.part("model/"), kept.file)
    job.load_state_dict(kept.state["learned"])
    batches = kept.batches_of(job)
    job.begin(step)
    say(f"step {step} was kept because {kept.state['message']}")
    broken = [name for name, p in model.named_parameters() if not bool(p.isfinite().all())]
    if broken:
        say(f"before the step these parameters were not finite already: {', '.join(broken[:5])}")
    tokens = sum(batch.tokens for batch in batches)
    torch.manual_seed(step_seed(kept.state["seed"], step))
    model.train()
    failed = False
    for batch in batches:
        modules: list[str] = []
        handles = _watch(model, modules)
        try:
            loss, nll, rows = job.losses(batch)
        finally:
            for handle in handles:
                handle.remove()
        if modules:
            say(f"forward: the first output that is not finite is that of {modules[0]}")
        failed |= bool(modules) | _report_tasks(job, batch, loss / tokens, nll, rows, say)
    say("it fails again" if failed else "it does not fail here; the failure was not of this step")
    return failed


def _watch(model: nn.Module, found: list[str]) -> list[Any]:
    """Record the modules whose output is not finite, in the order of the forward pass."""

    def hook(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs = output if isinstance(output, tuple | list) else [output]
            # -inf is normal in attention masks; NaN and +inf are errors.
            if any(
                isinstance(x, Tensor) and x.is_floating_point() and not bool(x.isfinite().all())
                for x in outputs
            ):
                found.append(name)

        return look

    return [m.register_forward_hook(hook(name)) for name, m in model.named_modules() if name]


def _report_tasks(
    job: Job[Any],
    batch: TaskBatch,
    loss: Tensor,
    nll: Tensor,
    rows: Tensor,
    say: Callable[[str], None],
) -> bool:
    """Report whether each task's loss and gradient are finite; returns whether any is not."""
    granularity = job.recipe.method.granularity
    groups = parameter_groups(job.model, granularity)
    group_of = {id(p): group.name for group in groups for p in group.parameters}
    names = {id(p): name for name, p in job.model.named_parameters()}
    parameters = [p for p in job.model.parameters() if p.requires_grad]
    # Samples that are not finite affect the gradients of all tasks: then test each task alone.
    apart = not bool(nll.isfinite().all())
    failed = False
    for index in batch.present:
        own = batch.task[rows] == index
        found: list[str] = []

        def note(gradient: Tensor, p: Tensor, found: list[str] = found) -> None:
            if not bool(gradient.isfinite().all()):
                found.append(f"{names[id(p)]}, parameter group {group_of[id(p)]!r}")

        share = loss[own].sum()
        if apart:
            share = job.losses(batch.of_task(index))[0].sum() / batch.tokens
        handles = [p.register_hook(lambda g, p=p: note(g, p)) for p in parameters]
        try:
            torch.autograd.backward(share, retain_graph=True)
        finally:
            for handle in handles:
                handle.remove()
        job.model.zero_grad(set_to_none=True)
        value = float(nll[own].sum())
        bad = torch.unique(rows[own][~nll[own].isfinite()])
        numbers = getattr(batch, "sentence", torch.arange(len(batch.task)))
        words = f"task {batch.tasks[index]}: loss {value:.6g}"
        if len(bad):
            words += f", not finite on {in_words({batch.tasks[index]: numbers[bad].tolist()})}"
        first = f"first not finite at {found[0]}" if found else "finite"
        say(f"{words}; gradient {first}")
        failed |= bool(found) or bool(len(bad))
    return failed


def replay_run(run: Path, step: int | None, say: Callable[[str], None]) -> bool:
    """`gradvac replay`: repeat a saved step of a run; returns whether it fails again."""
    kept = Replay.open(run, step)
    return replay(job_of(run), kept, say)
