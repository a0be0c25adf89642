"""Whether one system is better than another: sacreBLEU's paired tests, and Holm's correction."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest, Result

from gradvac.translation.tokenizers import bleu_metric

Test = Literal["bootstrap", "randomization"]


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
    """Two-sided p-value of a difference in BLEU and chrF++ (``bleu``, ``chrf``), by sacreBLEU.

    "bootstrap" is paired bootstrap resampling (Koehn 2004), "randomization" paired approximate
    randomization (Riezler & Maxwell 2005); ``samples`` 0 is sacreBLEU's own number, 1,000 and
    10,000. The environment variable SACREBLEU_SEED seeds them, by default 12345.
    """
    made: dict[str, Metric] = {
        "bleu": bleu_metric(tokenize),
        "chrf": CHRF(word_order=2),
    }
    wanted: Mapping[str, Metric] = {name: made[name] for name in metrics}
    named: list[tuple[str, Sequence[str]]] = [("baseline", baseline), ("system", system)]
    kind = "bs" if test == "bootstrap" else "ar"
    with _quiet():
        _, found = PairedTest(named, wanted, [list(references)], kind, samples)()
    results = [column[1] for name, column in found.items() if name != "System"]
    values = {}
    for name, result in zip(wanted, results, strict=True):
        assert isinstance(result, Result) and result.p_value is not None
        values[name] = result.p_value
    return values


def majority(p_values: Sequence[float]) -> float:
    """One p-value for several seeds, valid however they depend on each other.

    With K seeds it is K / r times the r-th smallest, r = K // 2 + 1 (Rueger 1978): a majority of
    the seeds has to show the effect.
    """
    r = len(p_values) // 2 + 1
    return min(1.0, len(p_values) / r * sorted(p_values)[r - 1])


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm 1979): family-wise error, whatever the dependence.

    The k-th smallest of m is multiplied by m - k + 1, and none may fall below a smaller one's.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda n: p_values[n])
    for k, n in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - k) * p_values[n]))
        adjusted[n] = highest
    return adjusted


@contextmanager
def _quiet() -> Iterator[None]:
    """Sacrebleu logs each system at level INFO, which some configurations print."""
    logger = logging.getLogger("sacrebleu")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
