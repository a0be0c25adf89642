"""UniMax by hand, by a literal loop and by its water level; MultiDDS-S beside torch's Adam."""

import json

import numpy as np
import pytest
import torch

from gradvac.data.sampling import MultiDDS, unimax
from tests.reference.multidds import literal_fit, literal_scorer, literal_update


def test_unimax_by_hand():
    # 60 over 4 is 15, but 1 may only be seen twice: 2. 58 over 3 is 19.3, 4 gives 8. 50 over 2 is
    # 25, 10 gives 20. 30 are left for 100.
    given = unimax(np.array([100.0, 4, 1, 10]), budget=60, max_epochs=2)
    assert given.tolist() == [30, 8, 2, 20]


def test_unimax_is_uniform_until_the_cap_binds_and_proportional_when_it_binds_everywhere():
    sizes = np.array([8.0, 2, 5])
    assert unimax(sizes, budget=6, max_epochs=1).tolist() == [2, 2, 2]
    assert unimax(sizes, budget=1000, max_epochs=3).tolist() == [24, 6, 15]


@pytest.mark.parametrize("seed", range(20))
def test_unimax_is_the_algorithm_of_the_paper_and_a_water_level(seed):
    rng = np.random.default_rng(seed)
    sizes = np.round(rng.lognormal(5, 2, 12)) + 1
    cap = rng.uniform(0.2, 5)
    budget = rng.uniform(0.05, 1) * cap * sizes.sum()
    ours = unimax(sizes, budget, cap)

    literal, remaining = {}, budget
    languages = sorted(range(12), key=lambda l: sizes[l])
    while languages:
        per_language = remaining / len(languages)
        l = languages.pop(0)
        epochs = per_language / sizes[l]
        literal[l] = sizes[l] * cap if epochs > cap else per_language
        remaining -= literal[l]
    assert ours == pytest.approx([literal[l] for l in range(12)], rel=1e-12)

    low, high = 0.0, budget
    for _ in range(200):  # the level u at which sum_l min(u, cap n_l) is the budget
        level = (low + high) / 2
        low, high = (low, level) if np.minimum(level, cap * sizes).sum() > budget else (level, high)
    assert ours == pytest.approx(np.minimum(low, cap * sizes), rel=1e-9)


def test_multidds_takes_the_steps_of_adam_on_the_objective_of_the_paper():
    rng = np.random.default_rng(0)
    sizes = np.array([40_000, 9000, 900, 12_000])
    ours = MultiDDS(sizes, steps=30, learning_rate=0.02)
    psi, adam = literal_scorer(4, 0.02)
    with torch.no_grad():
        psi.copy_(torch.tensor(sizes).double().log())
    assert ours.shares == pytest.approx(sizes / sizes.sum(), rel=1e-12)
    for _ in range(4):  # Adam's averages go on from one update to the next
        rewards = rng.uniform(-0.2, 1, 4)
        expected = literal_update(psi, adam, torch.tensor(rewards), steps=30)
        assert ours.update(rewards) == pytest.approx(expected.numpy(), rel=1e-10)


def test_multidds_starts_where_the_authors_fit_ends():
    sizes = np.array([5000, 3000, 2000, 800])
    psi, _ = literal_scorer(4, 1e-3)
    literal_fit(psi, torch.tensor(sizes / sizes.sum()))
    gap = torch.softmax(psi.detach(), 0).numpy() - MultiDDS(sizes).shares
    assert np.mean(gap**2) <= 1e-6  # what the authors stop at


def test_a_task_whose_gradient_helps_is_drawn_more_often():
    scorer = MultiDDS(np.array([100, 100, 100]))
    shares = scorer.update(np.array([0.9, 0.1, 0.1]))
    assert shares[0] > 1 / 3 > shares[1] == shares[2]


def test_the_state_survives_json_to_the_last_bit():
    sizes, rng = np.array([7, 300, 41]), np.random.default_rng(1)
    one = MultiDDS(sizes, steps=17, learning_rate=0.03)
    one.update(rng.uniform(-1, 1, 3))
    other = MultiDDS(sizes, steps=17, learning_rate=0.03)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    rewards = rng.uniform(-1, 1, 3)
    assert one.update(rewards).tolist() == other.update(rewards).tolist()
    assert one.state_dict() == other.state_dict()
