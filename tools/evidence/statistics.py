"""What a few paired differences allow to say: tests, equivalence, power.

Differences are paired by seed. ``error`` is the standard error of their mean, ``freedom`` its
degrees of freedom, ``deviation`` their standard deviation. The level is 5 %, the power 80 %:
the usual ones.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from scipy.optimize import root_scalar
from scipy.stats import nct
from scipy.stats import t as student_t

LEVEL = 0.05
POWER = 0.8
_normal = NormalDist().inv_cdf


def different(value: float, error: float, freedom: int) -> float:
    """Two-sided p-value of no difference: Student's t.

    Example:
        >>> from tools.evidence.statistics import different
        >>> round(different(4.302653, 1, 2), 6)  # the quantile of any table
        0.05
    """
    if error == 0:
        return float(value == 0)
    return 2 * float(student_t.sf(abs(value) / error, freedom))


def within(value: float, error: float, freedom: int, bound: float) -> float:
    """p-value of a difference of ``bound`` or more: two one-sided t tests (Schuirmann 1987).

    Example:
        >>> from tools.evidence.statistics import within
        >>> round(within(0, 1, 2, 2.919986), 6)
        0.05
    """
    if error == 0:
        return float(abs(value) >= bound)
    return float(student_t.sf((bound - abs(value)) / error, freedom))


def largest(value: float, error: float, freedom: int) -> float:
    """Largest difference that `within` leaves possible at the level, of either sign.

    Example:
        >>> from tools.evidence.statistics import largest
        >>> round(largest(-0.5, 1, 2), 3)
        3.42
    """
    return abs(value) + float(student_t.ppf(1 - LEVEL, freedom)) * error


def detectable(deviation: float, n: int, level: float = LEVEL) -> float:
    """Smallest true difference that a paired t test of ``n`` seeds finds with 80 % power.

    Non-central t; the other tail, below 1e-6 here, is left out.

    Example:
        >>> from tools.evidence.statistics import detectable
        >>> [round(detectable(1, n), 2) for n in (3, 6, 10)]
        [3.26, 1.43, 1.0]
    """
    edge = float(student_t.ppf(1 - level / 2, n - 1))
    missed = lambda errors: float(nct.sf(edge, n - 1, errors)) - POWER
    most = 2 * edge  # of errors, where it is found nearly always
    while missed(most) < 0:
        most *= 2
    errors = root_scalar(missed, bracket=(0.1, most)).root
    return float(errors) * deviation / math.sqrt(n)


def seeds_for(deviation: float, difference: float, level: float = LEVEL) -> int:
    """Number of seeds with which `detectable` is at most ``difference``; 3 at least.

    Example:
        >>> from tools.evidence.statistics import seeds_for
        >>> seeds_for(1, 0.5), seeds_for(1, 0.2)
        (34, 199)
    """
    least = 3
    about = ((_normal(1 - level / 2) + _normal(POWER)) * deviation / difference) ** 2
    n = max(least, math.floor(about))  # of a known deviation; an estimated one needs more
    while detectable(deviation, n, level) > difference:
        n += 1
    return n


def seeds_to_exclude(deviation: float, bound: float, level: float = LEVEL) -> int:
    """Number of seeds with which `within` rejects ``bound`` with 80 % power if there is no effect.

    The bound must be the quantiles of level and of power apart, in standard errors (Chow and Liu
    2009, chapter 5); 3 at least.

    Example:
        >>> from tools.evidence.statistics import seeds_to_exclude
        >>> seeds_to_exclude(1, 0.5)
        36
    """
    n = 3
    quantile = lambda p: float(student_t.ppf(p, n - 1))
    while (quantile(1 - level) + quantile((1 + POWER) / 2)) * deviation / math.sqrt(n) > bound:
        n += 1
    return n


def detectable_correlation(n: int) -> float:
    """Smallest correlation that ``n`` points find with 80 % power: Fisher's z, two-sided.

    Example:
        >>> from tools.evidence.statistics import detectable_correlation
        >>> round(detectable_correlation(10), 2)
        0.79
    """
    return math.tanh((_normal(1 - LEVEL / 2) + _normal(POWER)) / math.sqrt(n - 3))


def points_for(r: float) -> int:
    """Number of points with which `detectable_correlation` is at most ``r``.

    Example:
        >>> from tools.evidence.statistics import points_for
        >>> points_for(0.5), points_for(0.3)
        (30, 85)
    """
    return 3 + math.ceil(((_normal(1 - LEVEL / 2) + _normal(POWER)) / math.atanh(r)) ** 2)
