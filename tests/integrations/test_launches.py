"""Host cost of a step in the loops of other libraries, counted on a make-believe device."""

import pytest

from tests.engine.counted import counted

LOOPS = ["of_trainer", "of_accelerate"]


@pytest.fixture(scope="module")
def steps():
    return counted("tests.integrations.launches")


@pytest.mark.parametrize("loop", LOOPS)
def test_launches_do_not_grow_with_the_number_of_tasks(steps, loop):
    plain, two, many = (steps[loop][k]["launches"] for k in ("0", "2", "64"))
    assert many <= 1.1 * two <= 1.1 * 2.0 * plain


@pytest.mark.parametrize("loop", LOOPS)
def test_the_host_waits_once_more_than_without_tasks(steps, loop):
    """That is for the report and the check; the model itself waits inside the Trainer."""
    plain = sum(steps[loop]["0"]["waits"].values())
    for k in ("2", "64"):
        waits = steps[loop][k]["waits"]
        assert waits["engine/step.py read_together"] == 1
        assert sum(waits.values()) == plain + 1
