"""Paired tests against sacreBLEU's command line; corrections against cases worked by hand."""

import os
import random
import re
import subprocess
import sys

import pytest

from gradvac.translation.significance import holm, majority, paired_test


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


@pytest.mark.parametrize(
    ("test", "flags"),
    [
        ("bootstrap", ["--paired-bs", "--paired-bs-n", "300"]),
        ("randomization", ["--paired-ar", "--paired-ar-n", "300"]),
    ],
)
def test_the_p_values_are_those_sacrebleu_prints(outputs, test, flags):
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
