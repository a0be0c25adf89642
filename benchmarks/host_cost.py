"""What the engine costs the host: its time, launches and waits, relative to plain training.

The models have 12 layers and are so narrow that most of a step is what the host does. On an
accelerator the host must be done before the device runs out of work. A step is forward, backward
and combination, without optimizer, by one backward pass with GradVac for each layer (all_layer), on
64 samples of 4 tokens that belong to K tasks in no order.

    python benchmarks/host_cost.py [--quick] [--json FILE] [--tasks 2 8 16 64] [--rounds 15]
                                   [--models transformer nn.Transformer bert llama]
                                   [--method gradvac]

cpu_ratio is CPU time on the CPU, one thread, at width 16: rounds alternate between plain training
and every K, so that a busy machine slows all of them, and the ratio is the median over rounds of
(engine / plain of the same round). At K = 64 it contains arithmetic that an accelerator would do:
64 gradients of every parameter, and 64 x 64 products of them. host_ratio is the same at width 4:
the same operations on a sixteenth of the parameters, so that nearly all of it is the host's. What
the method computes on the host is in both; with --method joint that is nothing. sizes_ratio is
host_ratio where the inputs of every step are one token longer than those of the step before, as
with padding to the longest of a batch: each step is recorded, none goes by a plan.

launch_ratio is the ratio of the operations that a step launches, views left out, and syncs how
often the host waits for the device more than in plain training. Both are counted on a make-believe
device (believe.py), at width 16, for an engine that waits and for one with lazy=True.

--quick measures 2 layers in 3 rounds. What it needs beside gradvac: transformers for BERT and
Llama.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.believe import Believe  # before the first backward pass, which looks for devices
from benchmarks.measuring import Step, timed
from gradvac.engine import Engine
from gradvac.methods import GradVac, Joint, Method
from gradvac.translation.shapes import TransformerConfig
from gradvac.translation.transformer import Transformer

SAMPLES, LENGTH, V, HEADS = 64, 4, 64, 2
WIDTH, NARROW = 16, 4
LONGEST = 24  # tokens, where each step has more than the one before


# -- the models ----------------------------------------------------------------------------------


class Translator(nn.Module):
    """``nn.Transformer`` with an embedding shared by both sides and the softmax."""

    def __init__(self, layers: int, d: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, d)
        sides = layers // 2, layers // 2
        self.body = nn.Transformer(d, HEADS, *sides, 4 * d, 0.0, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.body(self.embedding(x), self.embedding(y)) @ self.embedding.weight.T


class Shipped(nn.Module):
    """The Transformer of this package."""

    def __init__(self, layers: int, d: int) -> None:
        super().__init__()
        config = TransformerConfig(V, d, 4 * d, HEADS, layers // 2, layers // 2, dropout=0.0)
        self.body = Transformer(config)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.body.logits(self.body(x, y))


class OneSide(nn.Module):
    """A model of Hugging Face that returns logits and reads one side."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.body(input_ids=x).logits


def bert(layers: int, d: int) -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    shape = dict(hidden_size=d, intermediate_size=4 * d, num_attention_heads=HEADS)
    dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config = BertConfig(vocab_size=V, num_hidden_layers=layers, **shape, **dropout)
    return OneSide(BertForMaskedLM(config))


def llama(layers: int, d: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = dict(hidden_size=d, intermediate_size=4 * d, num_attention_heads=HEADS)
    config = LlamaConfig(vocab_size=V, num_hidden_layers=layers, use_cache=False, **shape)
    return OneSide(LlamaForCausalLM(config))


MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "transformer": Shipped,
    "nn.Transformer": Translator,
    "bert": bert,
    "llama": llama,
}


METHODS: dict[str, Callable[[], Method]] = {"gradvac": GradVac, "joint": Joint}

# -- the steps -----------------------------------------------------------------------------------


def steps(
    model: nn.Module,
    method: Callable[[], Method],
    n_tasks: list[int],
    device: str,
    lazy: bool = False,
    length: Callable[[], int] = lambda: LENGTH,
) -> dict[int, Step]:
    """A step of plain training, by 0, and one with the engine by the number of tasks."""
    torch.manual_seed(0)
    words = torch.randint(1, V, (2, SAMPLES, LONGEST)).to(device)
    batch = lambda: words[:, :, : length()].unbind(0)

    def plain() -> None:
        model.zero_grad()
        x, y = batch()
        F.cross_entropy(model(x, y).mT, y).backward()

    def with_engine(k: int) -> Step:
        engine = Engine(model, method(), "all_layer", engine="single_pass", lazy=lazy)
        order = torch.randperm(SAMPLES)
        names = [f"task {n % k}" for n in order.tolist()]

        def step() -> None:
            model.zero_grad()
            x, y = batch()
            with engine.tasks(names):
                losses = F.cross_entropy(model(x, y).mT, y, reduction="none")
                engine.backward(losses / losses.numel())

        return step

    return {0: plain} | {k: with_engine(k) for k in n_tasks}


def ratios(
    model: nn.Module,
    method: Callable[[], Method],
    n_tasks: list[int],
    rounds: int,
    grows: bool = False,
) -> dict[int, float]:
    """CPU time of a step relative to plain training, by the number of tasks.

    ``grows``: every step has inputs of another size.
    """
    length = LENGTH
    all_steps = steps(model, method, n_tasks, "cpu", length=lambda: length)
    for step in all_steps.values():  # the first steps are checked, and find out what there is
        for _ in range(3):
            step()
    times: list[dict[int, float]] = []
    for _ in range(rounds):
        length += grows
        times.append({k: timed(step, "cpu")[0] for k, step in all_steps.items()})
    return {k: statistics.median(time[k] / time[0] for time in times) for k in n_tasks}


def launches(
    model: nn.Module, method: Callable[[], Method], n_tasks: list[int], lazy: bool
) -> dict[int, tuple[int, int]]:
    """Launches and waits of the third step, by the number of tasks; of plain training by 0."""
    found: dict[int, tuple[int, int]] = {}
    with Believe() as device:
        for k, step in steps(model.to("believe"), method, n_tasks, "believe", lazy).items():
            step(), step()
            device.clear()
            step()
            found[k] = device.launches, (device.waits + device.blocked).total()
    return found


# -- the table -----------------------------------------------------------------------------------


def rows(
    name: str, layers: int, n_tasks: list[int], rounds: int, method: Callable[[], Method] = GradVac
) -> list[dict]:
    """Rows of the table for one model."""
    torch.manual_seed(0)
    model, narrow = MODELS[name](layers, WIDTH), MODELS[name](layers, NARROW)
    cpu, host = (ratios(m, method, n_tasks, rounds) for m in (model, narrow))
    sizes = ratios(narrow, method, n_tasks, min(rounds, LONGEST - LENGTH), grows=True)
    counted, lazy = (launches(model, method, n_tasks, lazy) for lazy in (False, True))
    plain_launches, plain_waits = counted[0]
    return [
        {
            "model": name,
            "layers": layers,
            "K": k,
            "cpu_ratio": round(cpu[k], 3),
            "host_ratio": round(host[k], 3),
            "sizes_ratio": round(sizes[k], 3),
            "launch_ratio": round(counted[k][0] / plain_launches, 3),
            "launches": counted[k][0],
            "plain_launches": plain_launches,
            "syncs": counted[k][1] - plain_waits,
            "lazy_launch_ratio": round(lazy[k][0] / plain_launches, 3),
            "lazy_launches": lazy[k][0],
            "lazy_syncs": lazy[k][1] - plain_waits,
        }
        for k in n_tasks
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 layers, some seconds")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 8, 16, 64], help="K")
    parser.add_argument("--rounds", type=int, help="rounds that alternate between the steps")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--method", choices=METHODS, default="gradvac")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: list[dict] = []
    print(f"{'':52}{'waits':>9}{'':8}{'lazy':>16}")
    print(
        f"{'model':16}{'K':>4}{'cpu':>8}{'host':>8}{'sizes':>8}{'launches':>10}{'ratio':>8}{'syncs':>7}"
        f"{'launches':>10}{'ratio':>8}{'syncs':>7}"
    )
    for name in args.models:
        rounds = args.rounds or (3 if args.quick else 15)
        for row in rows(name, 2 if args.quick else 12, args.tasks, rounds, METHODS[args.method]):
            found.append(row)
            print(
                f"{name:16}{row['K']:4}{row['cpu_ratio']:8.2f}{row['host_ratio']:8.2f}"
                f"{row['sizes_ratio']:8.2f}{row['launches']:10}"
                f"{row['launch_ratio']:8.2f}{row['syncs']:7}"
                f"{row['lazy_launches']:10}{row['lazy_launch_ratio']:8.2f}{row['lazy_syncs']:7}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
