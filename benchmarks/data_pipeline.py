"""What preparing text costs, beside Hugging Face `datasets` + `tokenizers` doing the same work.

    python benchmarks/data_pipeline.py [--quick] [--json FILE]
    python benchmarks/data_pipeline.py --text corpora/core/train/en-ru.tsv    # cleaning alone

Both read the same two-column text, clean it (normalise, limits of length and ratio, copies,
repeated pairs), tokenise it with a unigram vocabulary of the same size, keep it on disk, and
assemble batches of about 4,096 target tokens, lengths sorted within pools of 64 batches. Every
measurement is a process of its own: CPU time, and its peak (VmHWM) with what it maps from disk.
Ratios are of one run: above 1, gradvac is faster; of cleaning, medians of rounds in turn. The text
is made up, of words with a Zipf distribution, so that any size can be had; a fifth of the words of
one side have accents, and one line in fifty has doubled or odd spaces.

gradvac always checks bytes, columns and control characters and counts what it leaves out by reason,
with the first places. "clean" is beside a pipeline that does neither, "clean, with account" beside
one that does both.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

VOCABULARY = 3000
TOKENS, POOL, BATCHES = 4096, 64, 128
ROUNDS = 5
SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]


def write_text(file: Path, pairs: int) -> None:
    """Pairs of made-up sentences, lengths log-normal; one in fifty repeats an earlier one."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(SYLLABLES, rng.integers(1, 5))) for _ in range(30_000)]
    accents = str.maketrans("aeiou", "àéîôü")
    accented = [word.translate(accents) if n % 5 == 0 else word for n, word in enumerate(words)]
    with file.open("w", encoding="utf-8") as out:
        out.write("en\tfr\n")
        line = ""
        for _ in range(pairs):
            if not line or rng.random() > 0.02:
                n = int(np.clip(rng.lognormal(2.7, 0.6), 2, 90))
                ids = np.minimum(rng.zipf(1.15, 2 * n) - 1, len(words) - 1)
                english = " ".join([words[i] for i in ids[:n]])
                line = f"{english}.\t{' '.join([accented[i] for i in ids[n:]])}!\n"
                if rng.random() < 0.02:
                    line = line.replace(" ", rng.choice(["  ", "\xa0"]), 1)
            out.write(line)


def recipe(folder: Path) -> Any:
    from gradvac.experiment.recipe.load import parse_recipe

    tree = {
        "name": "data",
        "device": "cpu",
        "data": {"train": [{"path": str(folder / "text.tsv")}], "directions": ["fr-en"]},
        "vocabulary": {"path": str(folder / "vocabulary.model")},
    }
    return parse_recipe(tree, "benchmark")


def train_vocabularies(folder: Path) -> None:
    """One SentencePiece model and the same pieces and scores as a tokenizer of `tokenizers`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from gradvac.translation.vocabulary import train_vocabulary

    with (folder / "text.tsv").open(encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t") for line in islice(lines, 1, 20_000)]
    texts = {code: [row[n] for row in rows] for n, code in enumerate(("en", "fr"))}
    vocabulary = train_vocabulary(texts, size=VOCABULARY, byte_fallback=False)
    vocabulary.save(folder / "vocabulary.model")
    pieces = vocabulary.pieces
    table = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(len(pieces))]
    tokenizer = Tokenizer(models.Unigram(table, unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(folder / "tokenizer.json"))


# -- what is measured: each prints one line of JSON --------------------------------------------


def ours_clean(folder: Path) -> dict[str, float]:
    from gradvac.data.spool import Spool
    from gradvac.text.cleaning import Account, CleaningRules
    from gradvac.text.languages import Direction
    from gradvac.text.readers import read_blocks
    from gradvac.text.sources import Source

    account = Account()
    with tempfile.TemporaryDirectory() as work:
        start = time.process_time()
        spool = Spool(Path(work), CleaningRules(), account, ["fr-en"], None, frozenset())
        spool.fill(read_blocks(Source(path=folder / "text.tsv"), account))
        seconds = time.process_time() - start
        kept = spool.pairs(Direction("fr", "en"))
    return {"seconds": seconds, "kept": kept}


def ours_prepare(folder: Path) -> dict[str, float]:
    from gradvac.experiment.training.prepare import prepare

    start = time.process_time()
    prepared = prepare(recipe(folder), folder / "run", lambda text: None)
    return {"seconds": time.process_time() - start, "kept": prepared.tasks["fr-en"].pairs}


def ours_batches(folder: Path) -> dict[str, float]:
    from gradvac.data.batches import BatchPlan
    from gradvac.experiment.translation.prepare import open_prepared

    start = time.process_time()
    prepared = open_prepared(folder / "run")
    plan = BatchPlan(prepared.train, tokens=TOKENS, seed=1, pool=POOL)
    plan.add_phase(0, np.ones(1))
    opened = time.process_time() - start
    start = time.process_time()
    rows = sum(len(plan(step).sentence) for step in range(BATCHES))
    return {"seconds": time.process_time() - start, "kept": rows, "opened": opened}


def _theirs_clean(folder: Path, work: Path) -> Any:
    """The rules of `CleaningRules`, in the idiom of `datasets`: batched map, then filter."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    text = load_dataset(
        "csv", data_files=str(folder / "text.tsv"), delimiter="\t", quoting=3, split="train",
        cache_dir=str(work), keep_default_na=False,
    )  # fmt: skip

    def normalise(rows: dict[str, list[str]]) -> dict[str, list[str]]:
        return {
            code: [" ".join(unicodedata.normalize("NFC", t).split()) for t in texts]
            for code, texts in rows.items()
        }

    seen: set[int] = set()

    def keep(rows: dict[str, list[str]]) -> list[bool]:
        out = []
        for en, fr in zip(rows["en"], rows["fr"], strict=True):
            short, long = sorted((len(en), len(fr)))
            few, many = sorted((en.count(" ") + 1, fr.count(" ") + 1))
            good = short >= 1 and long <= 1200 and few >= 1 and many <= 200
            good = good and en.casefold() != fr.casefold() and long + 10 <= 4 * (short + 10)
            key = hash((en, fr))
            out.append(good and key not in seen)
            seen.add(key)
        return out

    return text.map(normalise, batched=True).filter(keep, batched=True)


def theirs_clean(folder: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as work:
        import datasets  # noqa: F401

        start = time.process_time()
        kept = len(_theirs_clean(folder, Path(work)))
        return {"seconds": time.process_time() - start, "kept": kept}


def theirs_account(folder: Path) -> dict[str, float]:
    """The same, control characters looked for, and what is left out counted and located."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    forbidden = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
    counts, first = Counter[str](), dict[str, list[int]]()

    def normalise(rows: dict[str, list[str]]) -> dict[str, list[str]]:
        return {
            code: [
                "" if forbidden.search(t) else " ".join(unicodedata.normalize("NFC", t).split())
                for t in texts
            ]
            for code, texts in rows.items()
        }

    seen: set[int] = set()

    def why(en: str, fr: str) -> str:
        short, long = sorted((len(en), len(fr)))
        if short < 1:
            return "empty side"
        if en == fr or en.casefold() == fr.casefold():
            return "target copies source"
        if long > 1200:
            return "too many characters"
        if max(en.count(" "), fr.count(" ")) >= 200:
            return "too many words"
        if long + 10 > 4 * (short + 10):
            return "length ratio"
        key = hash((en, fr))
        if key in seen:
            return "duplicate"
        seen.add(key)
        return ""

    def keep(rows: dict[str, list[str]], numbers: list[int]) -> list[bool]:
        out = []
        for en, fr, number in zip(rows["en"], rows["fr"], numbers, strict=True):
            reason = why(en, fr)
            if reason:
                counts[reason] += 1
                if len(places := first.setdefault(reason, [])) < 3:
                    places.append(number + 2)
            out.append(not reason)
        return out

    with tempfile.TemporaryDirectory() as work:
        start = time.process_time()
        text = load_dataset(
            "csv", data_files=str(folder / "text.tsv"), delimiter="\t", quoting=3, split="train",
            cache_dir=work, keep_default_na=False,
        )  # fmt: skip
        text = text.map(normalise, batched=True)
        kept = len(text.filter(keep, batched=True, with_indices=True))
        return {"seconds": time.process_time() - start, "kept": kept}


def theirs_prepare(folder: Path) -> dict[str, float]:
    import datasets  # noqa: F401
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(rows: dict[str, list[str]]) -> dict[str, list[Any]]:
        source = [[4, *e.ids, 3] for e in tokenizer.encode_batch(rows["fr"])]
        target = [[*e.ids, 3] for e in tokenizer.encode_batch(rows["en"])]
        lengths = [len(ids) for ids in target]
        return {"source": source, "target": target, "length": lengths}

    with tempfile.TemporaryDirectory() as work:
        start = time.process_time()
        text = _theirs_clean(folder, Path(work))
        encoded = text.map(encode, batched=True, remove_columns=["en", "fr"])
        encoded = encoded.filter(
            lambda rows: [
                max(len(s), len(t)) <= 256
                for s, t in zip(rows["source"], rows["target"], strict=True)
            ],
            batched=True,
        )
        encoded.save_to_disk(str(folder / "theirs"))
        return {"seconds": time.process_time() - start, "kept": len(encoded)}


def theirs_batches(folder: Path) -> dict[str, float]:
    """Shuffled indices, pools sorted by length, padded with torch: what its users write."""
    import torch
    from datasets import load_from_disk
    from torch.nn.utils.rnn import pad_sequence

    start = time.process_time()
    data = load_from_disk(str(folder / "theirs"))
    mean = float(np.mean(data["length"][:]))
    order = np.random.default_rng(1).permutation(len(data))
    opened = time.process_time() - start
    start, rows = time.process_time(), 0
    per_batch = round(TOKENS / mean)
    for pool in range(BATCHES // POOL):
        drawn = order[np.arange(pool * POOL * per_batch, (pool + 1) * POOL * per_batch) % len(data)]
        found = data[drawn.tolist()]
        by_length = np.argsort(found["length"], kind="stable")
        for part in np.array_split(by_length, POOL):
            source = [torch.tensor(found["source"][i]) for i in part]
            target = [torch.tensor(found["target"][i]) for i in part]
            pad_sequence(source, batch_first=True)
            out = pad_sequence(target, batch_first=True)
            pad_sequence([torch.cat([torch.tensor([2]), t[:-1]]) for t in target], True)
            rows += len(out)
    return {"seconds": time.process_time() - start, "kept": rows, "opened": opened}


def step_share(folder: Path) -> dict[str, float]:
    """Batch assembly as a share of a joint training step of the preset `small`, on this machine."""
    import torch

    from gradvac.data.batches import BatchPlan
    from gradvac.experiment.translation.prepare import open_prepared
    from gradvac.translation.shapes import PRESETS, TransformerConfig
    from gradvac.translation.transformer import Transformer

    torch.set_num_threads(1)
    prepared = open_prepared(folder / "run")
    plan = BatchPlan(prepared.train, tokens=TOKENS, seed=1, pool=POOL)
    plan.add_phase(0, np.ones(1))
    start = time.process_time()
    batches = [plan(step) for step in range(POOL)]
    assembly = (time.process_time() - start) / POOL
    model = Transformer(TransformerConfig(vocabulary_size=VOCABULARY, **PRESETS["small"]))
    optimizer = torch.optim.Adam(model.parameters())
    times = []
    for b in batches[:3]:
        start = time.process_time()
        model.token_losses(b.source, b.target_in, b.target_out, 0.1)[0].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - start)
    return {"assembly_ms": 1e3 * assembly, "step_ms": 1e3 * float(np.median(times))}


MEASUREMENTS = {
    f.__name__: f
    for f in (
        ours_clean, ours_prepare, ours_batches, theirs_clean, theirs_account, theirs_prepare,
        theirs_batches, step_share,
    )
}  # fmt: skip


def status_mb(key: str) -> float:
    """A figure of this process in megabytes; ru_maxrss would hold that of the parent, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) / 1024


def measure(name: str, folder: Path) -> dict[str, float]:
    """Run one measurement in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--only", name, "--folder", str(folder)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def cleaning(folder: Path) -> dict[str, float]:
    """Seconds of cleaning, medians of rounds in which each has its turn."""
    names = ("ours_clean", "theirs_clean", "theirs_account")
    rounds = [{name: measure(name, folder)["seconds"] for name in names} for _ in range(ROUNDS)]
    return {name: median(found[name] for found in rounds) for name in names}


def clean_only(file: Path) -> None:
    """Clean a table of two languages, whatever they are, as English and French."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lines = file.read_bytes().partition(b"\n")[2]
        (folder / "text.tsv").write_bytes(b"en\tfr\n" + lines)
        found, pairs = cleaning(folder), lines.count(b"\n")
    for name, words in (("theirs_clean", "clean"), ("theirs_account", "clean, with account")):
        speed = [pairs / found[n] for n in ("ours_clean", name)]
        ratio = speed[0] / speed[1]
        print(f"| {file.name} | {words} | {speed[0]:,.0f} | {speed[1]:,.0f} | {ratio:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the text")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--text", type=Path, help="a table of two languages to clean, no more")
    parser.add_argument("--only", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        found = MEASUREMENTS[args.only](args.folder)
        found["peak_mb"] = status_mb("VmHWM")
        found["anonymous_mb"] = status_mb("RssAnon")
        print(json.dumps(found))
        return
    if args.text:
        clean_only(args.text)
        return
    sizes = (2000, 20_000) if args.quick else (20_000, 200_000)
    results: dict[str, Any] = {"sizes": sizes, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as temporary:
        for size in sizes:
            folder = Path(temporary) / str(size)
            folder.mkdir()
            write_text(folder / "text.tsv", size)
            train_vocabularies(folder)
            megabytes = (folder / "text.tsv").stat().st_size / 1e6
            found = {"megabytes": megabytes}
            found |= {name: measure(name, folder) for name in MEASUREMENTS if name != "step_share"}
            for name, seconds in cleaning(folder).items() if size == sizes[1] else ():
                found[name]["seconds"] = seconds
            results[str(size)] = found
        results["step"] = measure("step_share", folder)
    show(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


def show(results: dict[str, Any]) -> None:
    small, large = (results[str(size)] for size in results["sizes"])
    size = results["sizes"][1]
    print(f"{size:,} pairs, {large['megabytes']:.0f} MB, {results['cores']} cores\n")
    print("| CPU time | pairs/s | MB/s | datasets + tokenizers, pairs/s | ratio |\n|-|-|-|-|-|")
    stages = {"clean": "clean", "prepare": "clean, tokenise, write", "batches": "batches"}
    table = {"clean": "clean", "account": "clean, with account", **stages}
    for stage, words in table.items():
        ours = large["ours_clean" if stage == "account" else f"ours_{stage}"]
        theirs = large[f"theirs_{stage}"]
        count = {n: (r["kept"] if stage == "batches" else size) / r["seconds"]
                 for n, r in (("ours", ours), ("theirs", theirs))}  # fmt: skip
        speed = "" if stage == "batches" else f"{large['megabytes'] / ours['seconds']:.2f}"
        ratio = count["ours"] / count["theirs"]
        print(
            f"| {words} | {count['ours']:,.0f} | {speed} | {count['theirs']:,.0f} | {ratio:.2f} |"
        )
    print("\n| peak memory, MB | 1x text | 10x text | | datasets: 1x | 10x |\n|-|-|-|-|-|-|")
    for stage, words in stages.items():
        cells = [f"{part[f'{who}_{stage}']['peak_mb']:.0f}"
                 for who in ("ours", "theirs") for part in (small, large)]  # fmt: skip
        print(f"| {words} | {cells[0]} | {cells[1]} | | {cells[2]} | {cells[3]} |")
    opened = [1e3 * part["ours_batches"]["opened"] for part in (small, large)]
    print(f"\nopening: {opened[0]:.0f} ms at 1x, {opened[1]:.0f} ms at 10x")
    step = results["step"]
    share = step["assembly_ms"] / step["step_ms"]
    print(
        f"a batch: {step['assembly_ms']:.1f} ms, {share:.2%} of a step ({step['step_ms']:.0f} ms)"
    )


if __name__ == "__main__":
    main()
