"""`gradvac sweep`: every variant of a recipe with every seed, each in its own process.

All runs of a seed start from the same parameters and see the same batches, because both depend only
on the seed and on sections that a method does not change. The text is encoded once. A run that
fails or is killed does not stop the others. The same command resumes unfinished runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table as RichTable

from gradvac.errors import RunError
from gradvac.experiment.recipe.load import load_recipe, read_recipe_file
from gradvac.experiment.recipe.sections import BaseRecipe
from gradvac.experiment.recipe.variants import RecipeFile, row_of
from gradvac.experiment.run.below import DESCRIPTION
from gradvac.experiment.run.contents import Done, metrics_of
from gradvac.experiment.run.files import DONE, SCORES, scored_folder
from gradvac.experiment.training.kind import job_of, score_run
from gradvac.experiment.training.prepare import prepare, resume_run
from gradvac.experiment.training.process import StopSignal
from gradvac.reading import is_json, read_json
from gradvac.tables import Table
from gradvac.terminal import Terminal, complain
from gradvac.writing import write_json

LOG = "sweep.log"


@dataclass
class Job:
    """One run of a sweep."""

    variant: str
    recipe: BaseRecipe
    folder: Path
    error: str = ""

    @property
    def done(self) -> bool:
        """Whether the run is trained, and scored if it has test text.

        A truncated file, which earlier versions left on a full disk, counts as missing.
        """
        sets = self.recipe.test_sets
        needed = [scored_folder(self.folder, test, sets) / SCORES for test in sets]
        return all(map(is_json, [self.folder / DONE, *needed]))

    def state(self) -> str:
        """One cell of the progress table."""
        if self.error:
            return f"failed: {self.error[:40]}"
        try:
            if self.done:
                done = read_json(self.folder / DONE, Done)
                value = done["best"]["value"]
                return f"{done['metric']} {value:.3f}" if value < float("inf") else "done"
            last = metrics_of(self.folder)[-1]
            return f"step {last['step']}/{self.recipe.training.steps}"
        except (RunError, LookupError):  # not begun, or damaged: the reader of the file reports it
            return "waiting"


def run_sweep(
    recipe: Path,
    out: Path | None,
    *,
    size: str | None,
    only: Sequence[str],
    seeds: Sequence[int],
    changes: list[str] | None,
    gpus: Sequence[str],
    console: Console,
) -> int:
    """Run what a recipe file describes, as many runs in parallel as there are ``gpus``.

    ``gpus`` are values of CUDA_VISIBLE_DEVICES; "" does not set it. ``only`` names variants or
    rows, empty for all; ``seeds`` is empty for those of the file. All recipes are validated and all
    text is prepared before anything trains. Returns the exit code: 0, 1 if a run failed, 128 +
    signal if stopped.
    """
    file = read_recipe_file(recipe)
    jobs = plan(file, out, size=size, only=only, seeds=seeds, changes=changes)
    root = jobs[0].folder.parents[len(Path(jobs[0].variant).parts)]
    root.mkdir(parents=True, exist_ok=True)
    describe(file, root, size)
    say = lambda line: console.print(line, markup=False, soft_wrap=True)
    for job in jobs:
        if job.done:  # checked with the present recipe: results of another one do not count
            resume_run(job.recipe, job.folder, say)
        if not job.done:
            prepare(job.recipe, job.folder, say, root)
    left = [job for job in jobs if not job.done]
    console.print(f"{root}: {len(jobs)} runs, {len(jobs) - len(left)} of them finished before")
    stop = StopSignal()
    with stop.listening():
        code = _run_all(jobs, left, gpus, console, stop)
    if not console.is_terminal:
        console.print(progress(jobs))
    for job in jobs:
        if job.error:
            console.print(f"{job.folder}: {job.error}; see {job.folder / LOG}", soft_wrap=True)
    if code == 0:
        console.print(f"compare: gradvac compare {root}", soft_wrap=True)
    return code


def plan(
    file: RecipeFile,
    out: Path | None,
    *,
    size: str | None,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    changes: list[str] | None = None,
) -> list[Job]:
    """The runs of a sweep, ordered by seed, then variant. Raises RecipeError."""
    names: list[str | None] = [
        name for name in file.variants if not only or name in only or row_of(name) in only
    ]
    if unknown := set(only) - {*file.variants, *map(row_of, file.variants)}:
        file.choose(size, sorted(unknown)[0])  # raises, with the nearest name
    jobs = []
    for seed in seeds or file.seeds:
        for name in names or [None]:
            loaded = load_recipe(file, changes, size=size, variant=name, seed=seed)
            variant = name or loaded.method.name
            root = out or Path("runs") / "-".join(filter(None, (loaded.name, loaded.size)))
            jobs.append(Job(variant, loaded, root / variant / f"seed-{seed}"))
    return jobs


def describe(file: RecipeFile, root: Path, size: str | None) -> None:
    """Write what ``gradvac compare`` needs to know about a sweep's folder."""
    variants = list(file.variants)
    tree = {"size": size, "variants": variants, "baseline": file.baseline, "front": file.front}
    write_json(root / DESCRIPTION, tree)


def progress(jobs: Sequence[Job]) -> RichTable:
    """A table with variants as rows and seeds as columns."""
    seeds = list(dict.fromkeys(job.recipe.seed for job in jobs))
    heads = ["variant", *(f"seed {seed}" for seed in seeds)]
    states: dict[str, dict[int, str]] = {}
    for job in jobs:
        states.setdefault(job.variant, {})[job.recipe.seed] = job.state()
    rows = [[variant, *(own[seed] for seed in seeds)] for variant, own in states.items()]
    return Table(heads, rows, "sweep", words=heads).terminal()


def _run_all(
    jobs: list[Job], left: list[Job], gpus: Sequence[str], console: Console, stop: StopSignal
) -> int:
    """Keep every slot busy until no run is left or a signal arrives."""
    waiting, running = deque(left), dict[int, tuple[subprocess.Popen[bytes], Job]]()
    shown = Live(console=console, refresh_per_second=2) if console.is_terminal else nullcontext()
    with shown as live:
        while running or (waiting and not stop.number):
            for slot, gpu in enumerate(gpus):
                if slot not in running and waiting and not stop.number:
                    job = waiting.popleft()
                    running[slot] = (start(job.folder, gpu), job)
            time.sleep(0.1)
            if stop.number:  # signal all first, then wait while each saves a checkpoint
                for process, _ in running.values():
                    process.send_signal(stop.number)  # has no effect on an ended process
            for slot, (process, job) in list(running.items()):
                if stop.number:
                    process.wait()
                if process.poll() is None:
                    continue
                del running[slot]
                if process.returncode and not stop.number:
                    job.error = last_line(job.folder / LOG, process.returncode)
                if not live:
                    console.print(f"{job.folder}: {job.state()}", soft_wrap=True)
            if live:
                live.update(progress(jobs))
    if stop.number:
        console.print("stopped; the same command goes on")
        return 128 + stop.number
    return int(any(job.error for job in jobs))


def start(folder: Path, gpu: str = "", *, score: bool = True) -> subprocess.Popen[bytes]:
    """Train and score a prepared run in a process that gets signals only from this one.

    Its output goes to ``sweep.log`` in its folder.
    """
    flags = [] if score else ["unscored"]
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "gradvac.experiment.sweep.sweep", str(folder), *flags],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})},
            start_new_session=True,
        )


def last_line(log: Path, code: int) -> str:
    """The last output line of a failed run."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.removeprefix("error: ") for line in lines if line.strip()]
    return said[-1] if said and code > 0 else f"killed by signal {-code}"


def work(folder: Path, *, score: bool = True) -> int:
    """Train and score one prepared run; returns the exit code."""
    from gradvac.experiment.recipe.method_options import import_methods
    from gradvac.experiment.training.display import Display
    from gradvac.experiment.training.train import Trainer

    job = job_of(folder)
    if module := job.recipe.method.module:  # the sweep validated and wrote this recipe
        import_methods(module)
    code = Trainer(job, Display(Terminal())).train()
    if score and not code and job.recipe.has_test:
        for _ in score_run(folder, {}, print):
            pass
    return code


if __name__ == "__main__":
    from gradvac.errors import GradvacError
    from gradvac.experiment.run.disk import DISK, explain, is_refusal

    try:
        raise SystemExit(work(Path(sys.argv[1]), score=len(sys.argv) < 3))
    except GradvacError as problem:
        complain(problem)
        raise SystemExit(2) from None
    except OSError as problem:
        if not is_refusal(problem):
            raise
        complain(explain(problem))
        raise SystemExit(DISK) from None
