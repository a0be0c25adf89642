"""The tables of docs/prediction.md: a step on one H200, predicted from what it launches.

    python -m tools.predict            # the page from evidence/step-prediction.json
    python -m tools.predict --count    # count and measure anew first (a quarter of an hour)
    python -m tools.predict --count --keep-host --models big    # count one model anew

Counted at the full size, on a device without memory (benchmarks/weighed.py): launches, bytes,
operations, waits and memory. Measured here: the host's time, with the same layers of width 16.
Assumed: the rates of the device.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks import adapters, step_cost
from benchmarks.measuring import Step, Workload, setting, single_pass, transformer
from gradvac import GradVac
from gradvac.translation.transformer import Transformer
from tools.pages import filled
from tools.plan import table

if TYPE_CHECKING:
    from benchmarks.weighed import Launch

ROOT = Path(__file__).parents[1]
PAGE, KEPT = ROOT / "docs" / "prediction.md", ROOT / "evidence" / "step-prediction.json"
RATES = {
    "products in bf16, TFLOP/s": 790.0,
    "products in float32, TFLOP/s": 60.0,
    "memory, GB/s": 4300.0,
    "shortest launch, us": 4.0,
    "memory, GB": 141.0,
}
ENGINE, IN_ORDER, GRAPH, PER_TASK, _ = step_cost.PREDICTED[1:]
UNCHECKED = single_pass(GradVac, "all_layer", verify_steps=0)
PATHS: dict[str, Callable[[Any], Step]] = {
    name: step_cost.PATHS[name] for name in step_cost.PREDICTED
}
PATHS |= {ENGINE: UNCHECKED, IN_ORDER: step_cost.in_order(UNCHECKED)}
BEFORE = {ENGINE: 2, IN_ORDER: 2, GRAPH: 1, PER_TASK: 1}  # steps that find out
SHORT = 4  # tokens of a sample where the host is measured


@dataclass(frozen=True)
class Model:
    """A model and its batches.

    Attributes:
        title: what it is.
        build: makes the model of a size on the meta device.
        make: the workload of K tasks, tokens and a size.
        size: the name of the full size.
        tokens: of a batch.
        n_tasks: numbers of tasks K.
    """

    title: str
    build: Callable[[str], nn.Module]
    make: Callable[..., Workload]
    size: str
    tokens: int
    n_tasks: Sequence[int]


def _translator(size: str) -> nn.Module:
    with torch.device("meta"):
        return Transformer(transformer(size))


MODELS = {
    "big": Model(
        "Transformer-Big, vocabulary 64,000, 32,768 tokens on each side, autocast to bf16",
        _translator, setting, "big", step_cost.TOKENS["big"], step_cost.TASKS["big"],
    ),
    "7B": Model(
        "LoRA of rank 16 on all linear layers of a Llama of 7B in bf16, 16 samples of 512 tokens",
        lambda size: adapters.model_of(size, "meta"), adapters.adapted, "7B",
        step_cost.TOKENS["7B"], step_cost.TASKS["7B"],
    ),
}  # fmt: skip


# -- counted and measured ------------------------------------------------------------------------


def seconds(launches: Sequence[Launch]) -> float:
    """Time of the device: of each launch its arithmetic, its traffic or the least, the longest."""
    bf16, wide, traffic, least = list(RATES.values())[:4]
    rate = lambda launch: (wide if launch.wide else bf16) * 1e12
    return sum(
        max(least / 1e6, x.flops / rate(x), x.moved / (traffic * 1e9)) for x in launches
    )  # fmt: skip


def counted(model: Model, path: str, k: int) -> dict[str, Any]:
    """What a step launches, moves, computes and holds, after others that find out what there is."""
    from benchmarks.weighed import Weighed, like_a_gpu  # makes a device; the page needs none

    with Weighed(k) as device, like_a_gpu():
        free = lambda _: int(RATES["memory, GB"] * 1e9) - device.held
        built = device.moved(model.build(model.size))
        s = model.make(k, model.tokens, model.size, device="believe", model=built)
        step = PATHS[path](s)
        with (  # the device has no numbers, so a second pass cannot be compared with the first
            patch("gradvac.engine.local_collector.free_bytes", free),
            patch("gradvac.engine.repeats.different", return_value=(False,)),
        ):
            for _ in range(BEFORE.get(path, 0)):
                step()
            device.clear()
            step()
        found = device.found
        of = lambda wide: sum(x.flops for x in found if x.wide == wide) / 1e12
        return {
            "path": path,
            "K": k,
            "launches": len(found),
            "waits": device.waits.total(),
            "moved_gb": round(sum(x.moved for x in found) / 1e9, 1),
            "tflop": round(of(False), 2),
            "tflop_float32": round(of(True), 3),
            "device_ms": round(1e3 * seconds(found), 1),
            "peak_gb": round(device.peak / 1e9, 1),
        }


def host(model: Model, path: str, k: int, rounds: int = 3) -> float:
    """CPU milliseconds of a step of the same layers, hardly any arithmetic: the least of some."""
    s = model.make(k, SHORT * max(model.n_tasks), "narrow", length=SHORT)
    step = PATHS[path](s)
    step(), step()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return round(1e3 * min(times), 1)


def steps(model: Model) -> list[tuple[str, int]]:
    """The path and K of each row; plain training is the same for all K."""
    return [("plain", 1)] + [(p, k) for p in PATHS if p != "plain" for k in model.n_tasks]


def found(name: str, kept: Mapping[str, Any] | None) -> dict[str, Any]:
    """Count the rows of a model, and measure the host unless its times are kept."""
    model, rows = MODELS[name], []
    for path, k in steps(model):
        rows.append(counted(model, path, k))
        print(name, rows[-1], flush=True)
    times = {(row["path"], row["K"]): row["host_ms"] for row in (kept or {"rows": []})["rows"]}
    for row in rows:  # after the device is made: see believe.py
        if kept is not None and (row["path"], row["K"]) not in times:
            raise SystemExit(f"{KEPT} has no host time of {row}; count without --keep-host")
        known = times.get((row["path"], row["K"]))
        row["host_ms"] = host(model, row["path"], row["K"]) if known is None else known
    measured = {"processor": processor(), "torch": torch.__version__}
    if kept is not None:
        measured = {key: kept[key] for key in measured}
    return {"title": model.title, **measured, "rows": rows}


def processor() -> str:
    """The CPU of this machine."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


# -- the page ------------------------------------------------------------------------------------


def predicted(row: Mapping[str, Any]) -> float:
    """Milliseconds of a step: the host's or the device's, whichever is longer."""
    return max(row["host_ms"], row["device_ms"])


def assumptions(kept: Mapping[str, Any]) -> str:
    """What the figures rest on."""
    rows = [[name, f"{value:g}"] for name, value in kept["rates"].items()]
    for name, model in kept["models"].items():
        where = f"{model['processor']}, one thread, torch {model['torch']}"
        rows += [[f"model {name}", model["title"]], [f"host of {name} measured on", where]]
    return table(["assumed", ""], rows)


def ratios(rows: Sequence[Mapping[str, Any]], memory: float) -> str:
    """Predicted time relative to plain training, by path and K."""
    base, tasks = predicted(rows[0]), sorted({row["K"] for row in rows[1:]})
    lines = []
    for path in dict.fromkeys(row["path"] for row in rows[1:]):
        own = {row["K"]: row for row in rows if row["path"] == path}
        cell = lambda row: (
            f"{predicted(row) / base:.2f}" + (", no room" if row["peak_gb"] > memory else "")
        )
        lines.append([path, *(cell(own[k]) for k in tasks)])
    return table(["path", *(f"K = {k}" for k in tasks)], lines)


def details(rows: Sequence[Mapping[str, Any]]) -> str:
    """What was counted, and what follows from it."""
    lines = []
    for row in rows:
        limit = "host" if row["host_ms"] > row["device_ms"] else "device"
        cells = [row["path"], "" if row["path"] == "plain" else f"{row['K']}"]
        cells += [f"{row['launches']:,}", f"{row['waits']}", f"{row['moved_gb']:,.0f}"]
        cells += [f"{row['tflop']:.1f}", f"{row['tflop_float32']:.2f}", f"{row['device_ms']:,.0f}"]
        cells += [f"{row['host_ms']:,.0f}", f"{predicted(row):,.0f}", limit]
        lines.append([*cells, f"{row['peak_gb']:.0f}"])
    heads = "path,K,launches,waits,moved GB,TFLOP bf16,TFLOP float32,device ms,host ms,step ms,"
    return table((heads + "the longer,peak GB").split(","), lines)


def parts(kept: Mapping[str, Any]) -> dict[str, str]:
    """The tables by the name of their place in the page."""
    made = {"assumptions": assumptions(kept)}
    for name, model in kept["models"].items():
        made[f"{name} ratios"] = ratios(model["rows"], kept["rates"]["memory, GB"])
        made[f"{name} details"] = details(model["rows"])
    return made


def read() -> dict[str, Any]:
    """What was counted and measured."""
    return json.loads(KEPT.read_text(encoding="utf-8"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", action="store_true", help="count and measure anew")
    parser.add_argument("--keep-host", action="store_true", help="keep the host's times")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # that the first step is not checked
    if args.count:
        for name in args.models:
            kept = read()["models"].get(name) if args.keep_host else None
            model = found(name, kept)
            whole = read()
            whole = {"rates": RATES, "models": whole["models"] | {name: model}}
            KEPT.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    made = parts(read())
    PAGE.write_text(filled(PAGE, "predict", made), encoding="utf-8")
    for text in made.values():
        print(text, end="\n\n")


if __name__ == "__main__":
    main()
