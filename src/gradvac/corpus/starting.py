"""`gradvac new`: a corpus folder from any text, and a commented recipe that trains on it.

Text is read by `gradvac corpus import`. If it has no validation or test text, rows of the training
text become it, and the import is repeated with them: it keeps them out of training.
"""

from __future__ import annotations

import hashlib
import heapq
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from typing_extensions import TypedDict

from gradvac.corpus.folder import read_manifest
from gradvac.corpus.importing.build import TRAINING, Options, import_corpus
from gradvac.corpus.table import Line, size_lines
from gradvac.errors import CorpusError
from gradvac.reading import read_json
from gradvac.tables import Table
from gradvac.text.languages import ENGLISH
from gradvac.text.scripts import script
from gradvac.writing import write_text

Say = Callable[[str], None]
Rows = Iterator[tuple[str, str]]

DIRECTIONS = ("both", "to_en", "from_en")
HELD_OUT = 500
"""Most pairs of a language that become validation text, and as many test text. Chosen here: they
are scored in a minute."""
SHARE = 20
"""At most one pair of so many is held out for each of the two. Chosen here."""
TOKENS, PASSES = 15, 20
"""Target tokens of a pair, and passes over the text, to choose the number of steps. Chosen here."""
STEPS = (200, 100_000)
# Below so many pairs: preset, vocabulary, target tokens of a batch, learning rate. Chosen here, so
# that little text trains in minutes on a CPU, and much text has the shape of the papers.
SIZES = (
    (20_000, "tiny", 2_000, 1024, "2.0e-3"),
    (300_000, "tiny", 8_000, 2048, "2.0e-3"),
    (3_000_000, "small", 16_000, 4096, "1.0e-3"),
    (10**15, "base", 64_000, 16_384, "1.0e-3"),
)
_FIXED = 300  # pieces that no word is needed for: bytes, tags, letters
_SAMPLED = 20_000  # rows of each language whose words are counted
_SCRIPT_OF = 200  # rows of each language whose script is found


class _Dropped(TypedDict):
    count: int


class _Counts(TypedDict):
    dropped: dict[str, _Dropped]


class _Report(TypedDict):
    corpora: dict[str, _Counts]


@dataclass(frozen=True)
class Found:
    """What a folder of text has.

    ``lines`` are its languages and sizes, ``scripts`` those of the languages; ``held_out`` names
    the evaluation text that was taken from training text; ``overlap`` has, by reason, the training
    rows that were removed because of evaluation text; ``words`` counts distinct ones in a sample.
    """

    lines: list[Line]
    scripts: dict[str, str]
    held_out: list[str]
    overlap: dict[str, int]
    words: int


def new_project(
    text: Sequence[Path], out: Path, directions: str, options: Options, say: Say
) -> Path:
    """Write ``corpus/`` and ``recipe.yaml`` into the new folder ``out``; returns the recipe.

    Raises:
        CorpusError: ``out`` has something in it, or the text cannot be read, see `import_corpus`.
    """
    if directions not in DIRECTIONS:
        raise CorpusError(
            f"--directions is {directions!r}: allowed are {', '.join(DIRECTIONS)}; "
            "a recipe can also name them one by one"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CorpusError(f"{out}: is there already; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    try:
        found = _corpus(text, out, options, say)
        name = re.sub(r"[^\w.-]+", "-", out.resolve().name).strip(".") or "run"
        comment = describe(found, out / "recipe.yaml", name)
        lines = [f"# {line}".rstrip() for line in comment]
        lines += recipe_lines(found, name, directions)
        write_text(out / "recipe.yaml", "\n".join(lines) + "\n")
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    for line in comment[1:]:
        say(line)
    return out / "recipe.yaml"


def _corpus(text: Sequence[Path], out: Path, options: Options, say: Say) -> Found:
    """Import the text, and a second time if it has no evaluation text."""
    corpus = out / "corpus"
    import_corpus(text, corpus, options, say)
    missing = [part for part in ("valid", "test") if not (corpus / f"{part}.tsv").exists()]
    if missing:
        say(f"no {' or '.join(missing)} text: some of the training text becomes it")
        held_out = _hold_out(corpus, out / "held-out", missing)
        if not held_out:
            raise CorpusError(
                f"{', '.join(map(str, text))}: too few pairs to hold any out for "
                f"{' and '.join(missing)} text, one of {SHARE}; give files with valid and test in "
                "their names"
            )
        shutil.rmtree(corpus)
        import_corpus([*text, *held_out], corpus, options, lambda line: None)
    scripts = dict[str, str]()
    words = set[str]()
    for file in sorted((corpus / "train").glob("*.tsv")):
        with _table(file) as (codes, rows):
            sample = list(islice(rows, _SAMPLED))
        for code, column in zip(codes, zip(*sample, strict=True), strict=True):
            scripts.setdefault(code, script(column[:_SCRIPT_OF]))
            words.update(word for cell in column for word in cell.split())
    counted = read_json(corpus / "report.json", _Report)["corpora"].get(TRAINING)
    overlap = {why: d["count"] for why, d in counted["dropped"].items()} if counted else {}
    return Found(size_lines(corpus), scripts, missing, overlap, len(words))


@contextmanager
def _table(file: Path) -> Iterator[tuple[tuple[str, str], Rows]]:
    """The codes and the rows of a training file of a corpus folder."""
    with file.open(encoding="utf-8", newline="\n") as lines:
        cells = (line.rstrip("\n").split("\t") for line in lines)
        rows = ((first, second) for first, second in cells)
        yield next(rows), rows


def _hold_out(corpus: Path, folder: Path, parts: Sequence[str]) -> list[Path]:
    """Write some training rows of a corpus to ``folder``, a table for each of ``parts``.

    Those whose first side has the smallest hashes: the same sentences in every language. Returns
    the tables; none if there are too few rows for one of them.
    """
    pairs = read_manifest(corpus)["pairs"]["train"]
    held: list[dict[tuple[str, str], dict[str, str]]] = [{} for _ in parts]
    for file in sorted((corpus / "train").glob("*.tsv")):
        with _table(file) as ((first, second), rows):
            total = pairs.get(second) if first == ENGLISH else pairs.get(file.stem)
            most = min(HELD_OUT, (total or 0) // SHARE) * len(parts)
            chosen = heapq.nsmallest(most, rows, key=lambda row: _hash(row[0]))
        for one, other in chosen:
            texts = held[_hash(one) % len(parts)].setdefault((first, one), {first: one})
            texts[second] = other
    folder.mkdir()
    files = [folder / f"{part}.tsv" for part in parts]
    for file, own in zip(files, held, strict=True):
        codes = list(dict.fromkeys(code for texts in own.values() for code in texts))
        lines = ["\t".join(texts.get(code, "") for code in codes) for texts in own.values()]
        write_text(file, "\n".join(["\t".join(codes), *lines]) + "\n")
    return files if all(held) else []


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def recipe_lines(found: Found, name: str, directions: str) -> list[str]:
    """A commented recipe for the corpus in the folder ``corpus`` beside it."""
    codes = [line.code for line in found.lines]
    english = all("-" not in code for code in codes)
    sides = 2 if not english or directions == "both" else 1
    pairs = sides * sum(line.train for line in found.lines)
    preset, most, tokens, rate = next(size[1:] for size in SIZES if pairs < size[0])
    steps = min(max(pairs * TOKENS * PASSES // tokens, STEPS[0]), STEPS[1])
    often, several = max(20, steps // 20), sides * len(codes) > 1
    passes = f"about {PASSES} passes over the text, at least {STEPS[0]} and at most {STEPS[1]:,}"
    rows: list[tuple[str, object, str]] = [
        ("name", name, ""),
        ("seed", 1, ""),
        ("data", "", ""),
        ("  corpus", "corpus", "train, valid and test text, in the folder of this recipe"),
        ("  directions", directions if english else _both_ways(codes), ""),
        ("vocabulary", "", ""),
        ("  size", min(most, (_FIXED + found.words // 2) // 10 * 10), "shared by all languages"),
        ("model", "", ""),
        ("  preset", preset, "tiny, small, base, big"),
        ("batches", "", ""),
        ("  tokens", tokens, "target tokens of a step"),
        ("  temperature", 5, "1: languages as often as they have text; higher: more equal"),
        ("training", "", ""),
        ("  steps", steps, passes),
        ("  learning_rate", rate, ""),
        ("  warmup", min(4000, max(20, steps // 10)), ""),
        ("  validate_every", often, ""),
        ("  checkpoint_every", often, ""),
        ("  log_every", max(10, steps // 100), ""),
        ("method", "", ""),
        ("  name", "gradvac" if several else "joint", _METHOD if several else _ALONE),
        ("search", "", ""),
        ("  beam", 5, ""),
    ]
    return [_line(*row) for row in rows]


_METHOD = "joint is the baseline; all others: docs/methods.md"
_ALONE = "one direction alone conflicts with no other"


def _line(key: str, value: object, comment: str) -> str:
    text = f"{key}: {value}".rstrip()
    return f"{text:<28}# {comment}" if comment else text


def _both_ways(codes: Sequence[str]) -> str:
    """Directions without English: `de-fr` of the corpus is two."""
    ways = [way for code in codes for way in (code, "-".join(reversed(code.split("-"))))]
    return f"[{', '.join(ways)}]"


def describe(found: Found, recipe: Path, name: str) -> list[str]:
    """What was found, and the commands that go on."""
    rows = [
        [x.code, x.language, _scripts(x.code, found), x.family, x.level]
        + [f"{n:,}" for n in (x.train, x.valid, x.test)]
        for x in found.lines
    ]
    words = ("code", "language", "script", "family", "level")
    table = Table([*words, "train", "valid", "test"], rows, words=words).text()
    lines = ["Written by gradvac new. What the text has, in pairs:", "", *table.splitlines(), ""]
    if found.held_out:
        lines += [
            f"It had no {' and no '.join(found.held_out)} text: training pairs became it, in "
            "held-out/, and are counted below.",
            "For your own, give files with valid and test in their names.",
        ]
    removed = ", ".join(f"{n:,} {why}" for why, n in found.overlap.items()) or "none"
    return [
        *lines,
        "Training rows left out because they repeat validation or test text, or nearly:",
        f"  {removed}.",
        "What cleaning left out, and why: corpus/report.json. Every key: recipes/reference.yaml.",
        "",
        f"  gradvac train {recipe} --run runs/{name}   (again: it resumes)",
        f"  gradvac evaluate runs/{name}   (BLEU and chrF++ on the test text)",
        f"  gradvac report runs/{name}   (one page about it)",
        "",
    ]


def _scripts(code: str, found: Found) -> str:
    return ", ".join(dict.fromkeys(found.scripts.get(c, "") for c in code.split("-"))).title()
