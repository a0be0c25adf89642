"""Products and sums over the rows of each task, against a loop over the tasks."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gradvac.engine.gradients import by_task
from gradvac.engine.gradients.by_task import TaskRows, batched, sums
from gradvac.engine.samples.owners import Owners

OWNERS = {
    "equal and sorted": [0, 0, 1, 1, 2, 2],
    "equal, mixed": [2, 0, 1, 1, 0, 2],
    "unequal": [0, 1, 1, 1, 2, 1],
    "one task": [0, 0, 0],
    "absent at the ends and between": [4, 1, 4, 4, 1],
    "of very different sizes": [0] * 40 + [1] * 3 + [2] + [3] * 17 + [4],
    "many": torch.randint(9, (64,), generator=torch.Generator().manual_seed(1)).tolist(),
    "none": [],
}


def made(owners, n_tasks=None):
    n_tasks = n_tasks or max(owners, default=1) + 2  # the last one is absent
    return Owners(torch.tensor(owners, dtype=torch.int64), n_tasks)


@pytest.fixture(params=OWNERS.values(), ids=OWNERS)
def rows(request):
    return made(request.param)


def values(rows, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(width)
    return torch.randn(len(rows), width, dtype=dtype, generator=generator)


def of_task(x, rows, k):
    return x[[n for n, task in enumerate(rows.index.tolist()) if task == k]]


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("strided", [True, False])
def test_products_are_those_of_the_rows_of_each_task(rows, fresh, strided):
    x, dy = values(rows, 3), values(rows, 5)
    matrix = torch.full((rows.n_tasks, 20), 7.0, dtype=torch.float64)
    out = matrix[:, 2:17].unflatten(1, (5, 3)) if strided else matrix[:, :15].reshape(-1, 5, 3)
    before = out.clone()
    TaskRows(dy, rows, clear=True).product(TaskRows(x, rows), out, fresh)
    for k in range(rows.n_tasks):
        product = of_task(dy, rows, k).T @ of_task(x, rows, k)
        torch.testing.assert_close(out[k], product + (0 if fresh else before[k]))
    if strided:
        assert (matrix[:, :2] == 7).all() and (matrix[:, 17:] == 7).all()


@pytest.mark.parametrize("fresh", [True, False])
def test_sums_are_those_of_the_rows_of_each_task(rows, fresh):
    x = values(rows, 4)
    out = torch.full((rows.n_tasks, 4), 3.0, dtype=torch.float64)
    TaskRows(x, rows, clear=True).sums(out, fresh)
    expected = torch.stack([of_task(x, rows, k).sum(0) for k in range(rows.n_tasks)])
    torch.testing.assert_close(out, expected + (0 if fresh else 3))


@pytest.mark.parametrize("at_once", [True, False])
def test_sums_either_way(rows, at_once, monkeypatch):
    monkeypatch.setattr(by_task, "batched", lambda *args: at_once)
    x = values(rows, 4)
    expected = torch.stack([of_task(x, rows, k).sum(0) for k in range(rows.n_tasks)])
    torch.testing.assert_close(sums(x, rows), expected)


def test_sums_of_numbers(rows):
    x = values(rows, 1)[:, 0]
    expected = torch.stack([of_task(x, rows, k).sum() for k in range(rows.n_tasks)])
    torch.testing.assert_close(sums(x, rows), expected)


def test_low_precision_is_added_up_in_float32():
    rows = made([0] * 3000, 1)
    ones = torch.ones(3000, 2, dtype=torch.bfloat16)  # bfloat16 stalls at 256
    assert sums(ones, rows).tolist() == [[3000.0, 3000.0]]
    out = torch.empty(1, 2, 2)
    TaskRows(ones, rows, clear=True).product(TaskRows(ones, rows), out, fresh=True)
    assert out.dtype == torch.float32
    assert (out - 3000).abs().max() <= 3000 * 2**-8  # rounded once, to bfloat16


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("task", [0, 1, 2])
@pytest.mark.parametrize("owners", [[0, 1, 1, 1, 2, 2], [2, 1, 0, 1, 1, 2, 2, 1, 1, 1, 1, 1]])
def test_what_is_not_finite_stays_with_its_task(bad, side, task, owners):
    """It may not reach tasks whose rows are filled up, or that have none."""
    rows = made(owners, 4)
    sides = values(rows, 2), values(rows, 3)
    sides[side][owners.index(task), 0] = bad
    out = torch.full((4, 2, 3), bad, dtype=torch.float64)
    left, right = TaskRows(sides[0], rows, clear=True), TaskRows(sides[1], rows)
    left.product(right, out, fresh=True)
    assert out.isfinite().flatten(1).all(1).tolist() == [k != task for k in range(4)]
    left.sums(sums_out := torch.empty(4, 2, dtype=torch.float64), fresh=True)
    assert sums_out.isfinite().all(1).tolist() == [k != task or side for k in range(4)]


def test_filling_is_less_than_half_of_what_is_multiplied(rows):
    filled = sum(len(p.tasks) * p.height for p in rows.padded)
    assert filled <= 2 * len(rows)
    assert sorted(k for p in rows.padded for k in p.tasks) == sorted(set(rows.index.tolist()))


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        return func(*args, **(kwargs or {}))


def launches(n_tasks, owners):
    rows = Owners(owners, n_tasks)
    x, dy = values(rows, 3), values(rows, 5)
    out = torch.empty(n_tasks, 5, 3, dtype=torch.float64)
    rows.padded  # once a batch  # noqa: B018
    with Count() as count:
        TaskRows(dy, rows, clear=True).product(TaskRows(x, rows), out, fresh=True)
    return count.number


def test_the_number_of_operations_does_not_grow_with_the_tasks():
    equal = [launches(k, torch.arange(256) % k) for k in (2, 8, 64)]
    assert equal[0] == equal[1] == equal[2]
    sizes = lambda k: torch.arange(k).repeat_interleave(1 + torch.arange(k) % 13)
    unequal = [launches(k, sizes(k)) for k in (13, 64, 256)]
    assert unequal[2] <= unequal[0]


def test_a_cpu_takes_large_products_one_by_one():
    rows = made([0] * 900 + [1] * 100, 2)
    wide, narrow = torch.empty(1000, 512), torch.empty(1000, 4)
    assert not batched(rows, wide, wide)
    assert batched(rows, narrow, narrow)
    assert batched(made([0, 1] * 500, 2), wide, wide)  # nothing to fill up
    large = torch.empty(1000, 1).expand(1000, 2000)
    assert not batched(made([0, 1] * 500, 2), large, narrow)  # copies leave the cache
    assert batched(rows, wide.to("meta"), wide.to("meta"))
