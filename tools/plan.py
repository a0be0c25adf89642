"""The tables of docs/plan.md: the calculation for a run of 375 million parameters on 64 ranks.

    python -m tools.plan                # print them
    python -m tools.plan --write        # put them into docs/plan.md
    python -m tools.plan --flops 400 --memory 4300 --network 50 --latency 10    # other accelerators

Counted: the parameters and groups of the model, bytes, messages and waits. Measured here, in this
call: the method's algebra on the host. Assumed: the rates of the accelerator, by the options.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from gradvac import GradVac
from gradvac.engine.groups import parameter_groups
from gradvac.engine.ranks.cost import cost
from gradvac.engine.ranks.group import bucket_of
from gradvac.methods import StepGeometry
from gradvac.translation.shapes import PRESETS, TransformerConfig
from gradvac.translation.transformer import Transformer
from tools.pages import filled

PAGE = Path(__file__).parents[1] / "docs" / "plan.md"
VOCABULARY, RANKS, TOKENS = 64_000, 64, 500_000
LANGUAGES = (25, 102)
NUMBER = 4  # bytes of float32


def model_groups() -> dict[str, int]:
    """The parameters of each group of Transformer-Big, counted on a model without memory."""
    with torch.device("meta"):
        model = Transformer(TransformerConfig(vocabulary_size=VOCABULARY, **PRESETS["big"]))
    groups = parameter_groups(model, "all_layer")
    return {group.name: sum(p.numel() for p in group.parameters) for group in groups}


def algebra(tasks: int, groups: int, rounds: int = 5) -> float:
    """Seconds of CPU that GradVac takes to decide a step, on one thread: the fastest of some."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(groups, tasks, 4 * tasks, generator=generator, dtype=torch.float64)
    names = tuple(f"task {k}" for k in range(tasks))
    method, found = GradVac(), []
    for step in range(rounds):
        geometry = StepGeometry(
            rows @ rows.mT, torch.ones(tasks), names, tuple(map(str, range(groups))), step, None
        )
        started = time.process_time()
        method.weights(geometry)
        found.append(time.process_time() - started)
    return min(found[1:])  # the first one asks for memory


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def steps(sizes: dict[str, int], host: dict[int, float], args: argparse.Namespace) -> str:
    """What is sent and held, and the time of a step beside plain data parallel training."""
    parameters, largest = sum(sizes.values()), max(sizes.values())
    work = 6 * parameters * TOKENS / RANKS / (args.flops * 1e12)
    rows = []
    for sharded in (False, True):
        for tasks in LANGUAGES:
            for on_each in (tasks, 1 + tasks / RANKS):  # every task everywhere; stretches
                found = cost(
                    parameters, RANKS, tasks, on_each, len(sizes), largest, sharded=sharded
                )
                extra = 3 * on_each * parameters * NUMBER / (args.memory * 1e9)
                wait = args.latency / 1e6
                travel = found.sent / (args.network * 1e9) + found.messages * wait
                plain = found.plain / (args.network * 1e9) + found.plain_messages * wait
                hidden = (max(work + extra, travel) + host[tasks]) / max(work, plain)
                in_turn = (work + extra + travel + host[tasks]) / (work + plain)
                rows.append(
                    [
                        "sharded" if sharded else "whole",
                        f"{tasks}",
                        f"{on_each:.1f}",
                        f"{found.sent / 1e9:.1f}",
                        f"{found.plain / 1e9:.1f}",
                        f"{found.messages:,}",
                        f"{found.plain_messages:,}",
                        f"{found.waits}",
                        f"{host[tasks] * 1e3:.0f}",
                        f"{found.held / 1e9:.2f}",
                        f"{hidden:.2f}",
                        f"{in_turn:.2f}",
                    ]
                )
    heads = (
        "parameters,languages,on each rank,sent GB,plain GB,messages,plain,host waits,"
        "algebra ms,task gradients held GB,step / plain: exchange hidden,not hidden"
    )
    return table(heads.split(","), rows)


def facts(sizes: dict[str, int], args: argparse.Namespace) -> str:
    """The numbers that the tables are computed from."""
    parameters, largest = sum(sizes.values()), max(sizes, key=lambda name: sizes[name])
    bucket = bucket_of(parameters, RANKS)
    work = 6 * parameters * TOKENS / RANKS
    rows = [
        ["parameters", f"{parameters / 1e6:.1f} million in {len(sizes)} groups (`all_layer`)"],
        ["largest group", f"{largest}, {sizes[largest] / 1e6:.1f} million"],
        ["ranks, tokens of a step", f"{RANKS}, {TOKENS:,}"],
        ["work of a rank", f"{work / 1e12:.1f} TFLOP: {work / args.flops / 1e9:.0f} ms"],
        [
            "bucket",
            f"{bucket / 1e6:.1f} million numbers; to each rank {bucket * NUMBER / RANKS / 1e6:.2f}"
            " MB for each task",
        ],
        [
            "assumed for an accelerator",
            f"{args.flops:g} TFLOP/s, {args.memory:g} GB/s of memory, {args.network:g} GB/s of "
            f"network, {args.latency:g} us a message",
        ],
    ]
    return table(["", ""], rows)


def memory(sizes: dict[str, int]) -> str:
    """What one rank holds, GB."""
    parameters, largest = sum(sizes.values()), max(sizes.values())
    layer = sorted(sizes.values())[-2]
    state = 4 * NUMBER * parameters
    rows = [
        [
            "parameters, gradient, two moments of Adam",
            f"{state / 1e9:.1f}",
            f"{state / RANKS / 1e9:.1f}",
        ],
        [
            "layers gathered, two at a time, and the embedding",
            "",
            f"{(2 * layer + largest) * NUMBER / 1e9:.1f}",
        ],
    ]
    for tasks in LANGUAGES:
        on_each = 1 + tasks / RANKS
        held = cost(parameters, RANKS, tasks, on_each, len(sizes), largest).held
        rows.append(
            [
                f"task gradients, {tasks} languages, {on_each:.1f} on each",
                *[f"{held / 1e9:.1f}"] * 2,
            ]
        )
        rows.append(
            [
                "the same, for methods that need all groups, or for micro-batches",
                f"{(tasks / RANKS * parameters) * NUMBER / 1e9:.1f}, "
                f"{(tasks / RANKS + on_each) * parameters * NUMBER / 1e9:.1f}",
                "the same",
            ]
        )
    return table(["", "whole", "sharded"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flops", type=float, default=100, help="TFLOP/s that training reaches")
    parser.add_argument("--memory", type=float, default=2000, help="GB/s of its memory")
    parser.add_argument("--network", type=float, default=25, help="GB/s that a rank sends")
    parser.add_argument("--latency", type=float, default=10, help="microseconds of a message")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/plan.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = model_groups()
    host = {tasks: algebra(tasks, len(sizes)) for tasks in LANGUAGES}
    parts = {
        "facts": facts(sizes, args),
        "steps": steps(sizes, host, args),
        "memory": memory(sizes),
    }
    for text in parts.values():
        print(text, end="\n\n")
    if args.write:
        PAGE.write_text(filled(PAGE, "plan", parts), encoding="utf-8")


if __name__ == "__main__":
    main()
