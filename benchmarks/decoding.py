"""Decoding with one model: ours, Hugging Face's `generate`, CTranslate2 in float32 and in int8.

The model, exported from gradvac, translates the same batches of the shipped test set in every
engine, on the same number of threads. Rounds alternate between the engines, so that a busy machine
slows all of them; speeds are medians over rounds. Counted, too, is how many of the translations are
ours, token for token: in greedy search and float32 all; beam searches differ in when they stop, and
int8 is another model.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from gradvac.experiment.recipe.paths import resolve
from gradvac.experiment.run.checkpoint import load_tensors
from gradvac.experiment.translation.model_folder import FoundModel, find_model
from gradvac.translation.search import MAX_LENGTH_OFFSET, MAX_LENGTH_RATIO, beam_search
from gradvac.translation.to_ctranslate2 import ExportedModel, write_ctranslate2
from gradvac.translation.to_huggingface import write_huggingface
from gradvac.translation.translate import Translator

LENGTH_PENALTY = 1.0
Sources = Sequence[list[int]]
Engine = Callable[[Sources, int], list[list[int]]]  # sources and beam, to tokens without eos


def test_sentences(found: FoundModel, languages: Sequence[str], count: int) -> list[list[int]]:
    """Encode the first of the shipped test set in each language, to go into English."""
    with lzma.open(resolve("shipped:corpus") / "test.tsv.xz", "rt", encoding="utf-8") as file:
        codes, *rows = [line.rstrip("\n").split("\t") for line in file]
    each = count // len(languages)
    texts = [[t for row in rows if (t := row[codes.index(c)])][:each] for c in languages]
    return [found.vocabulary.encode_source(t, "en") for column in texts for t in column]


def padded(sources: Sources) -> torch.Tensor:
    rows = [torch.tensor(ids) for ids in sources]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def ours(found: FoundModel) -> Engine:
    model, v = found.load(), found.vocabulary

    def translate(sources: Sources, beam: int) -> list[list[int]]:
        best = beam_search(
            model,
            padded(sources),
            bos=v.bos,
            eos=v.eos,
            forbidden=v.forbidden,
            beam=beam,
            length_penalty=LENGTH_PENALTY,
        )
        return [list(one.tokens) for one, *_ in best]

    return translate


def huggingface(folder: Path, eos: int) -> Engine:
    from transformers import AutoModelForSeq2SeqLM

    model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()

    def translate(sources: Sources, beam: int) -> list[list[int]]:
        ids = padded(sources)
        found = model.generate(
            input_ids=ids,
            attention_mask=(ids != 0).long(),
            num_beams=beam,
            length_penalty=LENGTH_PENALTY,
            max_new_tokens=MAX_LENGTH_RATIO * ids.shape[1] + MAX_LENGTH_OFFSET,
        )
        return [[t for t in row if t > eos] for row in found.tolist()]

    return translate


def ctranslate2(folder: Path, found: FoundModel, compute_type: str) -> Engine:
    model = ExportedModel(folder, compute_type=compute_type)

    def translate(sources: Sources, beam: int) -> list[list[int]]:
        options = {"beam": beam, "length_penalty": LENGTH_PENALTY}
        return model.search(sources, found.vocabulary, **options)

    return translate


def engines(found: FoundModel) -> dict[str, Engine]:
    parts = found.config, load_tensors(found.parameters), found.vocabulary
    with tempfile.TemporaryDirectory() as name:
        hf, ct2 = Path(name, "huggingface"), Path(name, "ctranslate2")
        hf.mkdir(), ct2.mkdir()
        write_huggingface(*parts, hf)
        write_ctranslate2(*parts, ct2)
        return {
            "gradvac": ours(found),
            "transformers": huggingface(hf, found.vocabulary.eos),
            "ctranslate2 float32": ctranslate2(ct2, found, "float32"),
            "ctranslate2 int8": ctranslate2(ct2, found, "int8"),
        }


def run(engine: Engine, batches: list[Sources], beam: int) -> tuple[list[list[int]], float, float]:
    """Translations, CPU seconds and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = [tokens for batch in batches for tokens in engine(batch, beam)]
    return found, time.process_time() - cpu, time.perf_counter() - wall


def measure(paths: dict[str, Engine], batches: list[Sources], beam: int, rounds: int) -> list[dict]:
    found = {name: run(engine, batches, beam)[0] for name, engine in paths.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in paths}
    for number in range(rounds):
        for name in list(paths) if number % 2 else reversed(paths):
            seconds[name].append(run(paths[name], batches, beam)[1:])
    rows = []
    for name, pairs in seconds.items():
        ratios = [
            statistics.median(
                base[n] / own[n] for own, base in zip(pairs, seconds["gradvac"], strict=True)
            )
            for n in (0, 1)
        ]
        wall = statistics.median(pair[1] for pair in pairs)
        tokens = sum(len(t) + 1 for t in found[name])
        same = sum(x == y for x, y in zip(found[name], found["gradvac"], strict=True))
        rows.append(
            {
                "engine": name,
                "beam": beam,
                "sentences": len(found[name]),
                "same": same,
                "sentences_per_s": round(len(found[name]) / wall, 1),
                "tokens_per_s": round(tokens / wall, 1),
                "speed_cpu": round(ratios[0], 3),
                "speed_wall": round(ratios[1], 3),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="40 sentences and one round")
    parser.add_argument("--model", type=Path, default=resolve("shipped:start"))
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--batch-tokens", type=int, default=2048, help="1: sentence by sentence")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")

    found = find_model(arguments.model)
    count, rounds = (40, 1) if arguments.quick else (arguments.sentences, arguments.rounds)
    sources = test_sentences(found, "fr es de cs ru fi tr id".split(), count)
    order = Translator(found.load(), found.vocabulary, batch_tokens=arguments.batch_tokens)
    batches = [[sources[i] for i in batch] for batch in order.batches(dict(enumerate(sources)))]
    print(f"{len(sources)} sentences, {len(batches)} batches, {arguments.threads} threads")
    print(f"{'engine':22}{'beam':>5}{'same':>6}{'sent/s':>9}{'tokens/s':>10}{'cpu':>7}{'wall':>7}")
    rows, paths = [], engines(found)
    for beam in arguments.beams:
        for row in measure(paths, batches, beam, rounds):
            rows.append(row)
            print(
                f"{row['engine']:22}{beam:5}{row['same']:6}{row['sentences_per_s']:9.1f}"
                f"{row['tokens_per_s']:10.0f}{row['speed_cpu']:7.2f}{row['speed_wall']:7.2f}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
