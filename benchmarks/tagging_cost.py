"""What a step of tagging in 12 languages costs on a BERT, relative to plain joint fine-tuning.

Wang et al. 2021, tables 3 and 9: one encoder, 12 languages, batches of 32 sentences, every language
a task. Every path gets the same BertForTokenClassification, the same sentences in no order and the
loss `gradvac tag` trains with (a label at the first subword of each word); a step is forward,
backward and combination, without optimizer. Rounds alternate between the paths, so that a busy
machine slows all of them; a ratio is the median over rounds of (path / plain of the same round).
Memory is the peak of the second step above that of the built model.

    python benchmarks/tagging_cost.py [--quick] [--json FILE] [--tasks 12] [--sentences 32]
                                      [--rounds 5] [--paths all_layer TorchJD] [--threads 1]
                                      [--keep-memory]

The default is a BERT of 4 layers of width 256 with 30,000 subwords, 11 million parameters; --quick
is one of 2 layers of width 128 with 2,000. --keep-memory: see step_cost.py. What it needs beside
gradvac: transformers; torchjd for its rows, which are left out if it is not installed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForTokenClassification

from benchmarks.measuring import (
    HEADER,
    SENTENCE,
    Step,
    Workload,
    keep_freed_memory,
    line,
    measure,
    plain,
    single_pass,
    spread,
)
from benchmarks.step_cost import libmtl_way, per_task, torchjd_autojac
from gradvac import GradNorm, GradVac, PCGrad
from gradvac.tagging.encoder import label_losses
from gradvac.tagging.encoding import IGNORED, TokenBatch
from gradvac.tagging.labels import UPOS

SHAPES = {
    "mini": dict(vocab_size=30_000, hidden_size=256, num_hidden_layers=4, num_attention_heads=4),
    "quick": dict(vocab_size=2000, hidden_size=128, num_hidden_layers=2, num_attention_heads=2),
}


@dataclass
class Tagging(Workload):
    """A tagger and a batch of sentences, half of whose subwords begin a word."""

    batch: TokenBatch

    def losses(self, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Losses [N] of words, divided by the words of the step, and the sentence of each."""
        b = self.batch
        if own is not None:
            b = replace(b, ids=b.ids[own], mask=b.mask[own], labels=b.labels[own])
        loss, _, rows = label_losses(self.model, b)
        return loss / self.batch.tokens, rows


def tagging(n_tasks: int, tokens: int, size: str, in_order: bool, device: str) -> Tagging:
    """Build a BERT and a batch of ``tokens`` subwords, spread over the tasks."""
    torch.manual_seed(0)
    shape = SHAPES[size]
    config = BertConfig(**shape, intermediate_size=4 * shape["hidden_size"], num_labels=len(UPOS))
    n = tokens // SENTENCE
    ids = torch.randint(5, shape["vocab_size"], (n, SENTENCE))
    labels = torch.randint(len(UPOS), ids.shape).where(torch.rand(ids.shape) < 0.5, IGNORED)
    task, names = spread(n, n_tasks)
    task = task.sort().values if in_order else task
    batch = TokenBatch(
        ids,
        torch.ones_like(ids),
        labels,
        task=task,
        sentence=torch.arange(n),
        tasks=tuple(names),
    )
    model: nn.Module = BertForTokenClassification(config).to(device)
    return Tagging(model, task, names, batch.to(torch.device(device)))


def torchjd_autogram(s: Workload) -> Step:
    """The Gram matrix without the Jacobian, then one weighted backward; nothing is tied here."""
    from torchjd.aggregation import GradVacWeighting
    from torchjd.autogram import Engine

    engine = Engine(s.model, batch_dim=None)
    weighting = GradVacWeighting(beta=1e-2)

    def step() -> None:
        s.model.zero_grad()
        losses = torch.stack(s.task_losses())
        losses.backward(weighting(engine.compute_gramian(losses)))

    return step


PATHS: dict[str, Callable[[Workload], Step]] = {
    "plain": plain,
    "single_pass all_layer GradVac": single_pass(GradVac, "all_layer"),
    "single_pass whole_model PCGrad": single_pass(PCGrad, "whole_model"),
    "single_pass all_layer GradNorm": single_pass(GradNorm, "all_layer"),
    "per_task all_layer GradVac": per_task,
    "TorchJD autojac whole_model GradVac": torchjd_autojac,
    "TorchJD autogram whole_model GradVac": torchjd_autogram,
    "LibMTL's way whole_model GradVac": libmtl_way,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, some seconds")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--tasks", type=int, default=12, help="number of languages K")
    parser.add_argument("--sentences", type=int, default=32, help="sentences of a batch")
    parser.add_argument("--rounds", type=int, help="rounds that alternate between the paths")
    parser.add_argument("--paths", nargs="+", help="only paths whose name contains one of these")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep-memory", action="store_true", help="freed memory is kept")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.keep_memory:
        keep_freed_memory()
    chosen = {
        name: path
        for name, path in PATHS.items()
        if name == "plain" or not args.paths or any(word in name for word in args.paths)
    }
    rows = measure(
        args.tasks,
        args.sentences * SENTENCE,
        chosen,
        args.rounds or (3 if args.quick else 5),
        "quick" if args.quick else "mini",
        make=tagging,
    )
    print(HEADER)
    for row in rows:
        print(line(row))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
