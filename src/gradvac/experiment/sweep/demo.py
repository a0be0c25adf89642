"""`gradvac demo`: continues training the shipped model, jointly and with GradVac, and compares."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from gradvac.errors import RunError
from gradvac.experiment.recipe.load import load_recipe, of_kind
from gradvac.experiment.recipe.paths import RECIPE, resolve
from gradvac.experiment.report import write_report
from gradvac.experiment.run.contents import scores_of
from gradvac.experiment.run.disk import Outbox
from gradvac.experiment.run.folder import task_infos
from gradvac.experiment.run.resuming import build_once
from gradvac.experiment.sweep.first_look import first_look
from gradvac.experiment.training.build import device_of, has_bf16
from gradvac.experiment.training.display import Display, clock
from gradvac.experiment.training.prepare import prepare, resume_run, share_text
from gradvac.experiment.training.train import Trainer
from gradvac.experiment.training.updates import Updates
from gradvac.experiment.translation.evaluate import (
    evaluate_model,
    evaluate_run,
    table_rows,
    test_bitexts,
)
from gradvac.experiment.translation.job import TranslationJob
from gradvac.experiment.translation.model_folder import find_model
from gradvac.experiment.translation.prepare import open_prepared, test_rows
from gradvac.experiment.translation.recipe import Recipe
from gradvac.reading import read_json
from gradvac.tables import Table
from gradvac.translation.scoring import DirectionScores
from gradvac.writing import write_json

METHODS = {"joint": "joint", "gradvac": "GradVac"}
NOTES = (
    "One seed, a few minutes, one small model: this says nothing about which method is better.",
    "The evaluation strings are short texts of user interfaces; scores are higher than on news.",
)
PLAN = "demo.json"
FEWEST, MOST = 60, 160
"""Steps of each run. Chosen here: with fewer the new languages hardly improve; with more the demo
shows nothing new."""
TIMED = 3  # steps whose speed is measured, after one that is not
JOINT = 0.85  # time of a step of joint training, in steps of GradVac; measured 0.80
VALIDATIONS = 6  # what the validations of a run cost, in steps; measured on two cores
REPORT = 8.0  # seconds for the report, on slow cores


@dataclass(frozen=True)
class Plan:
    """How the demo was or will be run, in ``demo.json``: the same steps again.

    ``steps`` of each run; ``seconds_per_step`` of GradVac and ``tokens_per_s`` as measured before;
    ``precision`` and ``threads``, on which the last bits depend.
    """

    steps: int
    seconds_per_step: float
    tokens_per_s: float
    precision: str
    threads: int


def run_demo(
    out: Path,
    *,
    steps: int | None,
    minutes: float,
    sentences: int,
    console: Console,
    started: float | None = None,
) -> Path:
    """Look at the starting model, train both runs (or resume them), score all, write the report.

    ``steps`` of each run; None for as many as fit into ``minutes``, or as in an earlier demo in
    ``out``. ``started``: when the time began, by `time.perf_counter`; by default now. Returns the
    report's path. Everything is in ``out``: ``demo.json``, ``text/``, ``joint/``, ``gradvac/``,
    ``starting-model/`` and ``report.html``.
    """
    started = time.perf_counter() if started is None else started
    _check(out)
    recipe = _recipe("joint")
    first_look(recipe, console)
    rest = 60 * minutes - (time.perf_counter() - started)
    console.rule(f"text, and the starting model's scores{_left(rest) if steps is None else ''}")
    _prepare(recipe, out / "text", console)
    before = time.perf_counter()
    scores = {"starting model": _score_start(recipe, out, sentences, console)}
    scoring = time.perf_counter() - before
    spent = time.perf_counter() - started
    left = 60 * minutes - spent - 2 * scoring - REPORT
    plan = _plan(out, steps, left, console)
    after = 2 * scoring + REPORT
    train = (plan.steps + VALIDATIONS) * plan.seconds_per_step
    for name, own in (("joint", JOINT * train), ("gradvac", train)):
        after_this = after + train * (name == "joint")
        console.rule(f"{METHODS[name]}: {plan.steps} steps{_left(own + after_this)}")
        _train(name, out, plan.steps, Display(console, after=after_this))
    console.rule(f"scores on held-out strings{_left(after)}")
    for name in METHODS:
        scores[METHODS[name]] = evaluate_run(out / name, sentences=sentences, say=console.print)
    console.print(comparison(scores).terminal(whole=()))
    for signature in next(iter(scores.values())).signatures.values():
        console.print(signature, markup=False)
    report = _report(out, plan)
    console.print(NOTES[0])
    took = clock(time.perf_counter() - started)
    console.print(f"{took} in all; report: {report.resolve()}", soft_wrap=True)
    return report


def comparison(scores: Mapping[str, DirectionScores]) -> Table:
    """chrF++ and BLEU of several models side by side; the others started from the first."""
    rows = [
        [
            f"{of_all[0]['name']} {of_all[0]['level']}".strip(),
            *(f"{row['chrf']:.1f} ({row['bleu']:.1f})" for row in of_all),
        ]
        for of_all in zip(*map(table_rows, scores.values()), strict=True)
    ]
    return Table(["direction", *scores], rows, "chrF++ (BLEU) into English")


def _check(out: Path) -> None:
    """RunError for the folder of another version's demo."""
    if (out / "joint" / RECIPE).exists() and not (out / PLAN).exists():
        raise RunError(
            f"{out}: holds a demo without {PLAN}, of another version; delete the folder or choose "
            "another with --out"
        )


def _recipe(method: str, steps: int | None = None) -> Recipe:
    """The shipped recipe; validated twice, in the middle and at the end."""
    file = resolve("shipped:recipes/demo.yaml")
    changes = [f"method.name={method}"]
    if steps is not None:
        half = max(1, steps // 2)
        changes += [f"training.{key}={half}" for key in ("validate_every", "checkpoint_every")]
        changes += [f"training.steps={steps}"]
    return of_kind(load_recipe(file, changes), Recipe, str(file))


def _prepare(recipe: Recipe, folder: Path, console: Console) -> None:
    """Clean and encode the text that both runs share."""
    prepared = prepare(recipe, folder, lambda text: None)
    pairs = sum(info.pairs for info in prepared.tasks.values())
    console.print(
        f"{pairs:,} training pairs in {len(prepared.tasks)} directions; "
        f"what cleaning dropped and why: {folder / 'data' / 'account.json'}",
        soft_wrap=True,
    )


def _plan(out: Path, steps: int | None, seconds: float, console: Console) -> Plan:
    """The plan of an earlier demo in ``out``, or a new one whose training fits into ``seconds``."""
    file = out / PLAN
    if file.exists():
        plan = read_json(file, Plan)
        if steps not in (None, plan.steps):
            raise RunError(f"{file}: this demo has {plan.steps} steps; --out another folder")
        console.print(f"{plan.steps} steps, as recorded in {file}", soft_wrap=True)
        return plan
    each, tokens = _speed(out / "text")
    in_steps = (seconds - TIMED * each) / each / (1 + JOINT)
    fitting = int(in_steps - VALIDATIONS) // 10 * 10
    plan = Plan(
        steps=steps or min(max(fitting, FEWEST), MOST),
        seconds_per_step=each,
        tokens_per_s=tokens,
        precision="bf16" if has_bf16(device_of("auto")) else "fp32",
        threads=torch.get_num_threads(),
    )
    write_json(file, asdict(plan))
    why = "asked for" if steps else "chosen from the speed"
    if not steps and fitting < FEWEST:
        why = f"the fewest that show something, although {max(fitting, 0)} would fit into the time"
    console.print(
        f"{tokens:,.0f} tokens/s here in {plan.precision}: {plan.steps} steps of each run ({why}); "
        f"recorded in {file}; to repeat: gradvac demo --steps {plan.steps}",
        soft_wrap=True,
    )
    return plan


def _speed(text: Path) -> tuple[float, float]:
    """Seconds of a step of GradVac, and its tokens per second, on a model that is thrown away."""
    seconds, tokens = list[float](), list[int]()
    with tempfile.TemporaryDirectory() as scratch:
        recipe = _recipe("gradvac")
        prepared = replace(open_prepared(text), recipe=recipe, folder=Path(scratch))
        job = TranslationJob(prepared)
        updates = Updates(job, Outbox())
        for step in range(1 + TIMED):
            began = time.perf_counter()
            job.begin(step)
            tokens.append(updates.make(job.state_dict())[0])
            seconds.append(time.perf_counter() - began)
    each = statistics.fmean(seconds[1:])
    return each, statistics.fmean(tokens[1:]) / each


def _train(name: str, out: Path, steps: int, display: Display) -> None:
    """Train one run, or resume it; SystemExit if it was stopped."""
    recipe, folder = _recipe(name, steps), out / name
    if not build_once(folder, lambda: share_text(out / "text", folder, recipe)):
        resume_run(recipe, folder, display.line)
    code = Trainer(TranslationJob(open_prepared(folder)), display).train()
    if code:
        raise SystemExit(code)


def _score_start(recipe: Recipe, out: Path, sentences: int, console: Console) -> DirectionScores:
    """Score the starting model on the test set."""
    infos = task_infos(out / "text")
    return evaluate_model(
        find_model(resolve(str(recipe.training.start_from))),
        *test_bitexts(test_rows(out / "text"), list(infos)),
        levels={name: info.level for name, info in infos.items()},
        beam=recipe.search.beam,
        length_penalty=recipe.search.length_penalty,
        batch_tokens=recipe.search.batch_tokens,
        device=device_of(recipe.device),
        sentences=sentences,
        out=out / "starting-model",
        name="starting model",
        say=console.print,
    )


def _report(out: Path, plan: Plan) -> Path:
    how = (
        f"Each run has {plan.steps} steps of about {_recipe('joint').batch_size:,} target tokens; "
        f"GradVac made {plan.tokens_per_s:,.0f} tokens/s here."
    )
    return write_report(
        out / "report.html",
        [out / name for name in METHODS],
        title="gradvac demo: eight languages into English, jointly and with GradVac",
        start=scores_of(out / "starting-model"),
        notes=(*NOTES, how),
    )


def _left(seconds: float) -> str:
    return f" (about {clock(seconds)} left)"
