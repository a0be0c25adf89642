"""Paired tests against all cases there are and sacreBLEU; corrections worked by hand."""

import itertools
import math
import os
import random
import re
import subprocess
import sys
from functools import cache

import pytest
import sacrebleu

from gradvac.translation.significance import differing, holm, majority, paired_test


@pytest.fixture
def outputs(tmp_path):
    """Files of a reference, a baseline, and a system that errs less often."""
    rng = random.Random(1)
    words = "open close the file page sheet save print table of image style in a new".split()
    references = [" ".join(rng.choices(words, k=rng.randint(5, 9))) for _ in range(60)]

    def spoilt(rate: float) -> list[str]:
        return [
            " ".join(rng.choice(words) if rng.random() < rate else w for w in line.split())
            for line in references
        ]

    made = {"ref": references, "base": spoilt(0.40), "sys": spoilt(0.25)}
    for name, lines in made.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    return tmp_path, made


WORDS = "open close the file page sheet save print table of image style in a new".split()
SCORES = {
    "bleu": cache(lambda h, r: sacrebleu.corpus_bleu(h, [r], force=True).score),
    "chrf": cache(lambda h, r: sacrebleu.corpus_chrf(h, [r], word_order=2).score),
}


def spoilt(references, rate, seed):
    rng = random.Random(seed)
    return [
        " ".join(rng.choice(WORDS) if rng.random() < rate else w for w in line.split())
        for line in references
    ]


def few(count, differ):
    """References, outputs of a baseline, and the same with some sentences translated anew."""
    rng = random.Random(count)
    references = [" ".join(rng.choices(WORDS, k=rng.randint(5, 9))) for _ in range(count)]
    base = spoilt(references, 0.5, 1)
    return references, base, spoilt(references[:differ], 0.2, 2) + base[differ:]


def of_all_exchanges(references, base, own, score):
    """The share of all exchanges whose difference is at least what was seen."""
    references = tuple(references)
    seen, reached = abs(score(tuple(own), references) - score(tuple(base), references)), 0
    for exchange in itertools.product((False, True), repeat=len(base)):
        pairs = [(b, a) if e else (a, b) for a, b, e in zip(base, own, exchange, strict=True)]
        first, second = zip(*pairs, strict=True)
        reached += abs(score(second, references) - score(first, references)) >= seen - 1e-9
    return reached / 2 ** len(base)


def of_all_resamples(references, base, own, score):
    """The probability that a resample is as far from what was seen as that is from 0."""
    whole = (tuple(texts) for texts in (references, base, own))
    references, base, own = whole
    seen, reached = score(own, references) - score(base, references), 0.0
    n = len(references)
    for drawn in itertools.combinations_with_replacement(range(n), n):
        counts = [drawn.count(k) for k in set(drawn)]
        ways = math.factorial(n) / math.prod(map(math.factorial, counts))
        a, b, r = (tuple(texts[k] for k in drawn) for texts in (base, own, references))
        if abs(score(b, r) - score(a, r) - seen) >= abs(seen) - 1e-9:
            reached += ways
    return reached / n**n


@pytest.mark.parametrize(("count", "differ"), [(1, 1), (4, 4), (8, 1), (8, 8), (12, 6)])
@pytest.mark.parametrize("metric", SCORES)
def test_randomization_is_that_of_all_exchanges(count, differ, metric):
    case = few(count, differ)
    found = paired_test(case[1], case[2], case[0], test="randomization", samples=20_000)
    assert found[metric] == pytest.approx(of_all_exchanges(*case, SCORES[metric]), abs=0.015)


@pytest.mark.parametrize(("count", "differ"), [(1, 1), (4, 4), (6, 1), (6, 6)])
@pytest.mark.parametrize("metric", SCORES)
def test_the_bootstrap_is_that_of_all_resamples(count, differ, metric):
    case = few(count, differ)
    found = paired_test(case[1], case[2], case[0], test="bootstrap", samples=20_000)
    assert found[metric] == pytest.approx(of_all_resamples(*case, SCORES[metric]), abs=0.015)


@pytest.mark.parametrize("test", ["bootstrap", "randomization"])
def test_one_sentence_of_ten_is_no_evidence(test):
    """Where nothing else is right the score jumps from 0, whatever else is drawn."""
    references = [f"a{n} b{n} c{n} d{n} e{n}" for n in range(10)]
    base = ["x y z w v"] * 10
    found = paired_test(base, [references[0], *base[1:]], references, test=test)
    assert min(found.values()) > 0.3  # (9 / 10) ** 10 of all resamples leave it out
    assert set(paired_test(base, base, references, test=test).values()) == {1.0}


def test_what_differs_is_counted():
    assert differing(["a", "b", "c"], ["a", "x", "y"]) == 2


def test_randomization_has_the_p_values_that_sacrebleu_prints(outputs):
    """Of sixty sentences that nearly all differ no two exchanges are equal."""
    test, flags = "randomization", ["--paired-ar", "--paired-ar-n", "300"]
    folder, made = outputs
    command = [sys.executable, "-m", "sacrebleu", "ref", "-i", "base", "sys", *flags]
    command += ["-m", "bleu", "chrf", "--chrf-word-order", "2", "-f", "text"]
    printed = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        check=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "SACREBLEU_SEED"},
    ).stdout
    bleu, chrf = map(float, re.findall(r"\(p = (\d\.\d{4})\)", printed))
    ours = paired_test(made["base"], made["sys"], made["ref"], test=test, samples=300)
    assert ours["bleu"] == pytest.approx(bleu, abs=5.1e-5)
    assert ours["chrf"] == pytest.approx(chrf, abs=5.1e-5)
    assert 1 / 301 <= ours["bleu"] < 0.2  # neither trivial nor without effect


def test_holm_by_hand():
    # Sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1, the last raised to the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]  # 0.5 * 2 = 1, and nothing below it
    assert holm([0.02]) == [0.02] and holm([]) == []


def test_a_majority_of_seeds_has_to_show_it():
    assert majority([0.03]) == 0.03
    assert majority([0.01, 0.20]) == 0.20  # both of two
    assert majority([0.01, 0.02, 0.9]) == pytest.approx(1.5 * 0.02)  # two of three
    assert majority([0.01, 0.9, 0.8]) == 1.0
