"""The tables of docs/what-fits.md: memory and time of a step by model, tasks and granularity.

    python -m tools.what_fits              # counted: write the tables of memory and time
    python -m tools.what_fits --measure    # also measure small steps here, beside what is counted

Counted on models without memory (the meta device): the parameters of each group. What a step holds
beside plain training follows from docs/engine.md: the K gradients of the largest table, which are
complete only at the end, of the largest other group, and of a quarter of it that may wait.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from gradvac import GradVac
from gradvac.engine.groups import parameter_groups
from gradvac.translation.shapes import PRESETS, TransformerConfig
from gradvac.translation.transformer import Transformer
from tools.pages import filled
from tools.plan import table

PAGE = Path(__file__).parents[1] / "docs" / "what-fits.md"
NUMBER, STATE = 4, 16  # bytes of float32; of a parameter, its gradient and two moments of Adam
GB = 1e9
BUDGET = 2**31  # the engine's own, for the gradients of one parameter
TASKS = (4, 16, 64)
DEVICES = (8, 24, 80)
# A plain step's operations and the traffic of task gradients, per second: fitted in docs/engine.md
# on one core, and assumed in docs/plan.md for an accelerator.
RATES = {"one CPU core": (66e9, 4.5e9), "an accelerator, assumed": (100e12, 2000e9)}
SHAPES = {
    "XLM-R base": dict(vocab_size=250_002, hidden_size=768, num_hidden_layers=12),
    "XLM-R large": dict(vocab_size=250_002, hidden_size=1024, num_hidden_layers=24),
}


def transformer(preset: str, vocabulary: int) -> nn.Module:
    """One of the toolkit's translation models."""
    return Transformer(TransformerConfig(vocabulary_size=vocabulary, **PRESETS[preset]))


def encoder(name: str) -> nn.Module:
    """An encoder of Hugging Face for masked text, its table tied."""
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    shape = SHAPES[name]
    width = shape["hidden_size"]
    heads = {"num_attention_heads": width // 64, "intermediate_size": 4 * width}
    return XLMRobertaForMaskedLM(XLMRobertaConfig(**shape, **heads, max_position_embeddings=514))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tiny, 8,000 pieces": lambda: transformer("tiny", 8_000),
    "small, 32,000": lambda: transformer("small", 32_000),
    "base, 32,000": lambda: transformer("base", 32_000),
    "big, 64,000": lambda: transformer("big", 64_000),
    **{name: lambda name=name: encoder(name) for name in SHAPES},
}


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters that decide what is held: of a model in groups."""

    table: int  # the largest parameter, used in the first and the last operation
    other: int  # of the largest group, without that parameter
    whole: int
    groups: int

    @classmethod
    def of(cls, model: nn.Module, granularity: str) -> Sizes:
        """Count them."""
        found = parameter_groups(model, granularity)
        groups = [{p: p.numel() for p in group.parameters} for group in found]
        biggest = max((p for group in groups for p in group), key=lambda p: p.numel())
        others = [sum(n for p, n in group.items() if p is not biggest) for group in groups]
        return cls(biggest.numel(), max(others), biggest.numel() + sum(others), len(groups))

    def held(self, tasks: int) -> float:
        """Bytes of task gradients that a step holds at its peak, beside plain training."""
        waiting = max(2**24 / (NUMBER * tasks), max(self.table, self.other) / 4)
        table = NUMBER * tasks * self.table
        if self.groups > 1:  # made a chunk of rows at a time, if it needs more
            table = min(table, BUDGET)
        rest = NUMBER * tasks * (self.other + waiting)
        return min(table + rest, NUMBER * tasks * self.whole)


def memory(models: Mapping[str, nn.Module]) -> str:
    """GB of the training state, and of the task gradients beside it."""
    rows = []
    for name, model in models.items():
        size = sum(p.numel() for p in model.parameters())
        cells = [
            Sizes.of(model, g).held(k) / GB for g in ("all_layer", "whole_model") for k in TASKS
        ]
        twice = max(p.numel() for p in model.parameters()) * NUMBER * TASKS[1] / GB
        state = f"{STATE * size / GB:.2f}"
        rows.append([name, f"{size / 1e6:.1f}", state, *(f"{c:.2f}" for c in [*cells, twice])])
    heads = ["model", "million parameters", "state"]
    heads += [f"`{g}`, K = {k}" for g in ("all_layer", "whole_model") for k in TASKS]
    return table([*heads, f"two passes, K = {TASKS[1]}"], rows)


def most_tasks(sizes: Sizes, device: float) -> int:
    """The most tasks that fit if half of the device's memory is left for activations."""
    room = device * GB / 2 - STATE * sizes.whole
    return max((k for k in range(1, 257) if sizes.held(k) <= room), default=0)


def devices(models: Mapping[str, nn.Module]) -> str:
    """Tasks that fit on devices of some sizes."""
    rows = []
    for name, model in models.items():
        both = [Sizes.of(model, g) for g in ("all_layer", "whole_model")]
        found = [most_tasks(sizes, d) for d in DEVICES for sizes in both]
        cells = ["none" if k == 0 else "256 or more" if k == 256 else str(k) for k in found]
        rows.append([name, *cells])
    heads = [f"{d} GB, `{g}`" for d in DEVICES for g in ("all_layer", "whole_model")]
    return table(["model", *heads], rows)


def extra_time(tasks: int, tokens: int, flops: float, traffic: float) -> float:
    """Time of a step relative to plain training: 3 K P numbers moved beside 6 P T operations."""
    return 1 + 3 * tasks * NUMBER / traffic / (6 * tokens / flops)


def times() -> str:
    """Ratios for some numbers of tasks and tokens, which hold for a model of any size."""
    sizes = (1_024, 4_096, 32_768)
    rows = [
        [str(k), *(f"{extra_time(k, t, *rate):.2f}" for rate in RATES.values() for t in sizes)]
        for k in (2, 4, 8, 16, 64)
    ]
    heads = [f"{where}, {t:,} tokens" for where in RATES for t in sizes]
    return table(["K", *heads], rows)


def measured(rounds: int = 2, tokens: int = 1024) -> str:
    """Counted beside measured, on a Transformer of 13.6 million parameters, one thread."""
    from benchmarks.measuring import keep_freed_memory, measure, plain, single_pass
    from benchmarks.measuring import transformer as shape

    keep_freed_memory()
    model = Transformer(shape("13M"))
    rows = []
    for tasks in (4, 8):
        names = ("all_layer", "enc_dec", "whole_model")
        paths = {"plain": plain} | {g: single_pass(GradVac, g) for g in names}
        found = {row["path"]: row for row in measure(tasks, tokens, paths, rounds, "13M")}
        for name in names:
            beside = found[name]["peak_extra_mib"] - found["plain"]["peak_extra_mib"]
            counted = Sizes.of(model, name).held(tasks) / 2**20
            ratio = extra_time(tasks, tokens, *RATES["one CPU core"])
            cells = [f"{counted:.0f}", f"{beside:.0f}", f"{ratio:.2f}"]
            rows.append([f"`{name}`", str(tasks), *cells, f"{found[name]['ratio_cpu']:.2f}"])
    heads = "granularity,K,counted MiB,measured MiB,counted time,measured time"
    return table(heads.split(","), rows)


def counted() -> dict[str, str]:
    """The tables that nothing is measured for."""
    with torch.device("meta"):
        models = {name: make() for name, make in MODELS.items()}
    return {"memory": memory(models), "devices": devices(models), "times": times()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="also measure here (a minute)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    parts = counted() | ({"measured": measured()} if args.measure else {})
    PAGE.write_text(filled(PAGE, "fits", parts), encoding="utf-8")
    for text in parts.values():
        print(text, end="\n\n")


if __name__ == "__main__":
    main()
