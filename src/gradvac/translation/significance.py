"""Whether one system is better than another: paired tests, and Holm's correction.

The statistics of each sentence are sacreBLEU's. Its tests are not used: they do not count a
difference equal to the observed one, so that 1 different sentence of 10 has p = 0.0001 although
all exchanges there give p = 1, and its bootstrap is one-sided.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import numpy as np
from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.chrf import CHRF

from gradvac.translation.scoring import canonical
from gradvac.translation.tokenizers import bleu_metric

Test = Literal["bootstrap", "randomization"]
SAMPLES: dict[Test, int] = {"bootstrap": 1_000, "randomization": 10_000}
"""Number of samples of a test, as in sacreBLEU."""
FEW = 20
"""With fewer different sentences a test is not informative. Chosen here: with 6, an exact sign test
cannot give less than 0.03."""


def paired_test(
    baseline: Sequence[str],
    system: Sequence[str],
    references: Sequence[str],
    *,
    test: Test = "bootstrap",
    samples: int = 0,
    tokenize: str = "13a",
    metrics: Sequence[Literal["bleu", "chrf"]] = ("bleu", "chrf"),
) -> dict[str, float]:
    """Two-sided p-value of a difference in BLEU and chrF++ (``bleu``, ``chrf``).

    It is (r + 1) / (samples + 1), r the samples with a difference at least as large as the observed
    one (Davison and Hinkley 1997, section 4.2.5). "bootstrap" draws sentences with replacement
    (Koehn 2004) and uses the distance from the observed difference; "randomization" exchanges the
    two outputs of each sentence with probability 1/2 (Riezler and Maxwell 2005). ``samples`` 0 is
    `SAMPLES`. The environment variable SACREBLEU_SEED is the seed, by default 12345.
    """
    draw = _exchanged if test == "randomization" else _resampled
    values = {}
    for name in metrics:
        metric = bleu_metric(tokenize) if name == "bleu" else CHRF(word_order=2)
        stats = [_statistics(metric, texts, references) for texts in (baseline, system)]
        seen = _difference(metric, stats[0].sum(0), stats[1].sum(0))
        count = samples or SAMPLES[test]
        sums = draw(stats[0], stats[1], count)
        found = np.array([_difference(metric, a, b) for a, b in zip(*sums, strict=True)])
        gaps = np.abs(found if test == "randomization" else found - seen)
        # The order of a sum changes the last bits of a score; equal scores must count as equal.
        values[name] = (int((gaps >= abs(seen) - 1e-9).sum()) + 1) / (count + 1)
    return values


def differing(baseline: Sequence[object], system: Sequence[object]) -> int:
    """Number of outputs that differ between two systems."""
    return sum(a != b for a, b in zip(baseline, system, strict=True))


def _statistics(metric: Metric, texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """The counts of a metric for each sentence, [sentences, counts]."""
    own, other = canonical(texts), canonical(references)
    return np.array(metric._extract_corpus_statistics(own, [other]), dtype=np.float64)


def _difference(metric: Metric, baseline: np.ndarray, system: np.ndarray) -> float:
    """The score of the sums of ``system`` minus that of ``baseline``."""
    score = lambda sums: metric._compute_score_from_stats(sums.tolist()).score
    return score(system) - score(baseline)


def _exchanged(
    baseline: np.ndarray, system: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of both, [count, counts], with the outputs of random sentences exchanged."""
    kept = _rng().integers(2, size=(count, len(baseline)), dtype=bool)
    return kept @ baseline + ~kept @ system, ~kept @ baseline + kept @ system


def _resampled(
    baseline: np.ndarray, system: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of both, [count, counts], over sentences drawn with replacement."""
    drawn = _rng().choice(len(baseline), size=(count, len(baseline)))
    times = np.stack([np.bincount(own, minlength=len(baseline)) for own in drawn])
    return times @ baseline, times @ system


def _rng() -> np.random.Generator:
    seed = os.environ.get("SACREBLEU_SEED", "12345")
    return np.random.default_rng(None if seed.lower() == "none" else int(seed))


def majority(p_values: Sequence[float]) -> float:
    """One p-value for several seeds, valid under any dependence between them.

    With K seeds it is K / r times the r-th smallest, r = K // 2 + 1 (Rueger 1978): a majority of
    the seeds must show the effect.
    """
    r = len(p_values) // 2 + 1
    return min(1.0, len(p_values) / r * sorted(p_values)[r - 1])


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm 1979): family-wise error under any dependence.

    The k-th smallest of m is multiplied by m - k + 1, and is at least the previous result.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda n: p_values[n])
    for k, n in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - k) * p_values[n]))
        adjusted[n] = highest
    return adjusted
