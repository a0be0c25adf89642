"""Visiting orders: uniform, reproducible, and a matter of names alone."""

import subprocess
import sys
from collections import Counter

import torch
from scipy.stats import chisquare

from gradvac.methods import visiting_order
from gradvac.methods.orders import digest
from tests.methods.helpers import names


def as_names(seed, step, groups, tasks):
    order = visiting_order(seed, step, groups, tasks)
    return {
        (group, task): [tasks[j] for j in order[k, i].tolist()]
        for k, group in enumerate(groups)
        for i, task in enumerate(tasks)
    }


def test_each_task_visits_every_other_once():
    order = visiting_order(0, 0, names("g", 5), names("t", 7))
    assert order.shape == (5, 7, 6)
    for i in range(7):
        others = [j for j in range(7) if j != i]
        assert (order[:, i].sort(1).values == torch.tensor(others)).all()


def mixed(x):
    """SplitMix64 of whole numbers, as it is published."""
    x %= 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def test_an_order_is_that_of_the_keys_of_the_pairs_as_signed_numbers():
    """Runs go on in the same order whatever computes it."""
    groups, tasks = names("g", 3), names("t", 9)
    for (group, task), order in as_names(5, 7, groups, tasks).items():
        first = mixed(mixed(digest("5 7") + digest(group)) + digest(task))
        key = lambda other, first=first: (mixed(first + digest(other)) + 2**63) % 2**64
        assert order == sorted((t for t in tasks if t != task), key=key)


def test_one_task_visits_nobody():
    assert visiting_order(0, 0, ("g",), ("t",)).shape == (1, 1, 0)


def test_depends_on_names_and_not_on_position_or_company():
    full = as_names(3, 9, names("g", 4), names("t", 6))
    shuffled = as_names(3, 9, ("g2", "g0"), ("t5", "t1", "t0", "t4", "t3", "t2"))
    for key, order in shuffled.items():
        assert order == full[key]
    fewer = as_names(3, 9, ("g1",), ("t0", "t3", "t5"))
    for key, order in fewer.items():
        assert order == [t for t in full[key] if t in ("t0", "t3", "t5")]


def test_changes_with_seed_step_group_and_task():
    base = visiting_order(0, 0, names("g", 2), names("t", 12))
    assert not torch.equal(base, visiting_order(1, 0, names("g", 2), names("t", 12)))
    assert not torch.equal(base, visiting_order(0, 1, names("g", 2), names("t", 12)))
    assert not torch.equal(base[0], base[1])


def test_all_orders_are_equally_likely():
    groups, tasks = names("g", 600), names("t", 4)
    orders = torch.cat([visiting_order(0, step, groups, tasks) for step in range(20)])
    for i in range(4):  # 3! = 6 orders of the others
        counts = Counter(map(tuple, orders[:, i].tolist()))
        assert len(counts) == 6
        assert chisquare(list(counts.values())).pvalue > 1e-3
    # Orders of different tasks are independent of each other: 6 x 6 combinations.
    both = Counter((tuple(a), tuple(b)) for a, b in orders[:, :2].tolist())
    assert chisquare(list(both.values())).pvalue > 1e-3


def test_the_same_in_another_process():
    code = (
        "from gradvac.methods import visiting_order;"
        "print(visiting_order(5, 6, ('a', 'ü'), ('x', 'y', 'z', 'w')).tolist())"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    ours = visiting_order(5, 6, ("a", "ü"), ("x", "y", "z", "w")).tolist()
    assert first.stdout == second.stdout == f"{ours}\n"
