"""States that are not this method's own, or damaged: an error, and nothing is changed."""

import copy
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gradvac.errors import GradientError, NotFiniteError
from gradvac.methods import CATS, FAMO, MGDA, GradNorm, GradVac, Joint, Method, PCGrad
from gradvac.methods.pairs import PairTable
from tests.methods.helpers import geometry

METHODS: dict[str, type[Method]] = {
    "joint": Joint, "gradvac": GradVac, "mgda": MGDA, "gradnorm": GradNorm, "cats": CATS,
    "famo": FAMO,
}  # fmt: skip


def trained(name: str) -> Method:
    method = METHODS[name]()
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        g = torch.randn(3, 8, generator=generator).double()
        method.weights(geometry(g, step=step, losses=torch.tensor([1.0, 2.0, 3.0]).double()))
    return method


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the floating-point numbers of a state are."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from places(value, (*path, key))
    elif isinstance(tree, float) or (isinstance(tree, Tensor) and tree.is_floating_point()):
        yield path


@pytest.mark.parametrize("own", METHODS)
@pytest.mark.parametrize("other", METHODS)
def test_the_state_of_another_method_is_refused(own, other):
    if own == other or {own, other} == {"joint", "mgda"}:  # neither has any
        return
    method = trained(own)
    before = copy.deepcopy(method.state_dict())
    with pytest.raises(GradientError, match=f"the state for {METHODS[own].__name__} (lacks|has) "):
        method.load_state_dict(trained(other).state_dict())
    assert same(method.state_dict(), before)


@pytest.mark.parametrize("name", METHODS)
def test_numbers_that_are_not_finite_are_refused_wherever_they_are(name):
    state = trained(name).state_dict()
    found = list(places(state))
    assert len(found) >= {"joint": 0, "mgda": 0, "gradvac": 1}.get(name, 5)
    for place in found:
        for bad in (math.nan, math.inf):
            damaged = copy.deepcopy(state)
            tree = damaged
            for key in place[:-1]:
                tree = tree[key]
            if isinstance(tree[place[-1]], Tensor):
                tree[place[-1]].view(-1)[1] = bad
            else:
                tree[place[-1]] = bad
            method = METHODS[name]()
            before = copy.deepcopy(method.state_dict())
            with pytest.raises(GradientError, match=r"state '\w+'.* must be (a )?finite"):
                method.load_state_dict(damaged)
            assert same(method.state_dict(), before)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("state", [None, [], "state", {}, {"seed": "x"}])
def test_what_is_no_state_is_refused(name, state):
    with pytest.raises(GradientError, match=f"the state for {METHODS[name].__name__}"):
        METHODS[name]().load_state_dict(state)


def test_a_state_without_tensors_is_refused():
    state = trained("gradvac").state_dict() | {"targets": [[[0.0]]]}
    with pytest.raises(GradientError, match="'targets' is a list; it must be a tensor"):
        GradVac().load_state_dict(state)


def test_pcgrad_and_gradvac_have_states_of_one_form():
    PCGrad().load_state_dict(trained("gradvac").state_dict())


def test_a_table_that_grows_by_thousands_of_names_is_rarely_copied():
    table, moves = PairTable(), 0
    names = [f"t{n}" for n in range(3000)]
    for start in range(0, 3000, 10):
        own = tuple(names[start : start + 10])
        before = table._room.data_ptr()
        table.write(("g",), own, torch.full((1, 10, 10), float(start)).double())
        moves += table._room.data_ptr() != before
    assert moves <= 40  # a quarter more each time: 10 * 1.25 ** 26 > 3000
    state = table.state_dict()
    assert state["targets"].shape == (1, 3000, 3000) and state["tasks"] == names
    assert float(state["targets"].sum()) == sum(100 * start for start in range(0, 3000, 10))


def test_a_table_is_a_dictionary_of_pairs():
    table, literal, rng = PairTable(), {}, random.Random(1)
    for step in range(60):
        tasks = tuple(rng.sample([f"t{n}" for n in range(step // 2 + 2)], 2))
        groups = tuple(rng.sample("abc", rng.randint(1, 2)))
        values = torch.rand(len(groups), 2, 2).double()
        table.write(groups, tasks, values)
        for k, group in enumerate(groups):
            for i, one in enumerate(tasks):
                for j, other in enumerate(tasks):
                    literal[group, one, other] = float(values[k, i, j])
        if step % 20 == 10:
            again = PairTable()
            again.load_state_dict(table.state_dict())
            table = again
    every = tuple(f"t{n}" for n in range(32))
    found = table.read(("a", "b", "c"), every)
    for k, group in enumerate("abc"):
        for i, one in enumerate(every):
            for j, other in enumerate(every):
                assert float(found[k, i, j]) == literal.get((group, one, other), 0.0)


def test_a_gradient_too_long_for_its_square_is_told_from_one_that_is_not_finite():
    losses = torch.ones(2).double()
    with pytest.raises(NotFiniteError, match="or it is longer than 1e154 and float64 cannot"):
        GradVac().weights(geometry(torch.eye(2).double() * 1e160, losses=losses))
    with pytest.raises(NotFiniteError, match=r"nothing was updated$") as found:
        GradVac().weights(geometry(torch.eye(2).double() * math.nan, losses=losses))
    assert "1e154" not in str(found.value)
