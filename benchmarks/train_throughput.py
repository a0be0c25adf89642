"""Throughput of plain training beside Hugging Face's Marian of the same size.

Both sides get the same batches, the same label-smoothed loss over non-padding targets, the same
dropout and the same fused Adam, in a bare loop of the same process. They take turns batch by
batch, so that a busy machine slows all alike; a batch counts with its median over the rounds, and
ratios are to Marian in fp32. Once more under bfloat16 autocast, if this CPU computes in it: others
take minutes for it.

    python benchmarks/train_throughput.py [--quick] [--preset tiny] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MarianConfig, MarianMTModel

from gradvac.experiment.training.build import has_bf16
from gradvac.translation.shapes import PRESETS, TransformerConfig
from gradvac.translation.transformer import Transformer

LABEL_SMOOTHING = 0.1
PAD, BOS, EOS, FIRST_WORD = 0, 2, 3, 4


class Batch(NamedTuple):
    source: Tensor
    target_in: Tensor
    target_out: Tensor


def padded(sentences: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(sentences, batch_first=True, padding_value=PAD)


def make_batches(count: int, tokens: int, vocabulary: int) -> list[Batch]:
    """Lengths are log-normal around 20 subwords, cut at 100; the logarithm of target over source
    length has a deviation of 0.1. Sentences are sorted by length within a pool, as in training.
    """
    generator = torch.Generator().manual_seed(0)
    total = 16 * tokens  # a pool of some 350 batches
    lengths = torch.randn(total, generator=generator).mul(0.5).add(math.log(20)).exp()
    ratio = torch.randn(total, generator=generator).mul(0.1).exp()
    source_lengths = lengths.clamp(3, 100).long().tolist()
    target_lengths = (lengths * ratio).clamp(3, 100).long().tolist()
    bos, eos = torch.tensor([BOS]), torch.tensor([EOS])

    batches: list[Batch] = []
    sources: list[Tensor] = []
    targets: list[Tensor] = []
    for s, t in sorted(zip(source_lengths, target_lengths, strict=True), key=sum):
        words = torch.randint(FIRST_WORD, vocabulary, (s + t,), generator=generator)
        sources.append(torch.cat((words[:s], eos)))
        targets.append(words[s:])
        if sum(len(x) + 1 for x in targets) >= tokens:
            target_in = padded([torch.cat((bos, x)) for x in targets])
            target_out = padded([torch.cat((x, eos)) for x in targets])
            batches.append(Batch(padded(sources), target_in, target_out))
            sources, targets = [], []
    order = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[i] for i in order[:count]]


def padding(batches: list[Batch]) -> float:
    cells = sum(b.source.numel() + b.target_out.numel() for b in batches)
    filled = sum(int((b.source != PAD).sum() + (b.target_out != PAD).sum()) for b in batches)
    return 1 - filled / cells


def gradvac_loss(config: TransformerConfig) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    model = Transformer(config)

    def loss(batch: Batch) -> Tensor:
        return model.token_losses(*batch, LABEL_SMOOTHING)[0].mean()

    return model, loss


def marian_loss(config: TransformerConfig) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    model = MarianMTModel(
        MarianConfig(
            vocab_size=config.vocabulary_size,
            d_model=config.d_model,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            encoder_attention_heads=config.heads,
            decoder_attention_heads=config.heads,
            encoder_ffn_dim=config.d_ffn,
            decoder_ffn_dim=config.d_ffn,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            activation_dropout=config.activation_dropout,
            activation_function=config.activation,
            scale_embedding=True,
            max_position_embeddings=128,
            share_encoder_decoder_embeddings=True,
            tie_word_embeddings=True,
            use_cache=False,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
            decoder_start_token_id=BOS,
            attn_implementation="sdpa",
        )
    )

    def loss(batch: Batch) -> Tensor:
        logits = model(
            input_ids=batch.source,
            attention_mask=batch.source != PAD,
            decoder_input_ids=batch.target_in,
        ).logits
        return F.cross_entropy(
            logits.flatten(0, 1),
            batch.target_out.flatten(),
            ignore_index=PAD,
            label_smoothing=LABEL_SMOOTHING,
        )

    return model, loss


class Side:
    """One model, its optimiser, and the seconds of each of its steps."""

    def __init__(
        self, name: str, model: nn.Module, loss: Callable[[Batch], Tensor], bf16: bool
    ) -> None:
        self.name, self.loss, self.bf16 = name, loss, bf16
        self.parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        model.train()
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
        self.seconds: defaultdict[int, list[float]] = defaultdict(list)

    def step(self, number: int, batch: Batch) -> None:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16) if self.bf16 else nullcontext():
            loss = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.seconds[number].append(time.perf_counter() - start)

    def total(self) -> float:
        """Seconds for all batches, each the median of its rounds."""
        return sum(statistics.median(rounds) for rounds in self.seconds.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute or less")
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--tokens", type=int, default=2048, help="target tokens per batch")
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()

    config = TransformerConfig(arguments.vocabulary, **PRESETS[arguments.preset])
    batches = make_batches(3 if arguments.quick else 12, arguments.tokens, arguments.vocabulary)
    torch.manual_seed(0)
    sides = [
        Side("marian", *marian_loss(config), bf16=False),
        Side("gradvac", *gradvac_loss(config), bf16=False),
    ]
    if has_bf16(torch.device("cpu")):
        sides += [
            Side("marian bf16", *marian_loss(config), bf16=True),
            Side("gradvac bf16", *gradvac_loss(config), bf16=True),
        ]
    for side in sides:
        side.step(0, batches[0])
        side.seconds.clear()
    for number in range(3 if arguments.quick else 9):
        for i, batch in enumerate(batches):
            for side in sides if number % 2 else reversed(sides):
                side.step(i, batch)

    tokens = sum(int((batch.target_out != PAD).sum()) for batch in batches)
    rows = []
    print(f"{arguments.preset}, {torch.get_num_threads()} threads, padding {padding(batches):.1%}")
    print(f"{'path':14}{'parameters':>12}{'tokens/s':>10}{'ratio':>8}")
    for side in sides:
        speed, ratio = tokens / side.total(), sides[0].total() / side.total()
        rows.append({"path": side.name, "tokens_per_s": round(speed, 1), "ratio": round(ratio, 3)})
        print(f"{side.name:14}{side.parameters:12,}{speed:10.0f}{ratio:8.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
