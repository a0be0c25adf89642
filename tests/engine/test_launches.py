"""Host cost of a step where launches and waits cost: counted on a make-believe device."""

import pytest

from tests.engine.counted import counted


@pytest.fixture(scope="module")
def steps():
    return counted("tests.engine.launches")


def test_launches_do_not_grow_with_the_number_of_tasks(steps):
    assert steps["64 equal"]["launches"] <= 1.1 * steps["2 equal"]["launches"]
    assert steps["32 unequal"]["launches"] <= 1.1 * steps["8 unequal"]["launches"]


@pytest.mark.parametrize("tasks", ["2 equal", "64 equal", "2 unequal"])
def test_launches_are_at_most_twice_those_of_plain_training(steps, tasks):
    assert steps[tasks]["launches"] <= 2.0 * steps["plain"]["launches"]


def test_tasks_of_very_different_sizes_are_taken_in_two_classes(steps):
    """Of which each costs the launches of its own, whatever the number of tasks."""
    for tasks in ("8 unequal", "32 unequal"):
        assert steps[tasks]["launches"] <= 2.5 * steps["plain"]["launches"]


def test_the_host_waits_once_for_the_report_and_the_check(steps):
    assert steps["plain"]["waits"] == {}
    for name, step in steps.items():
        if name not in ("plain", "variants") and not name.startswith("lazy"):
            assert step["waits"] == {"engine/step.py read_together": 1}, name


def test_the_host_waits_once_with_heads_and_every_method(steps):
    for name, step in steps["variants"].items():
        if not name.startswith("lazy"):
            assert step["waits"] == {"engine/step.py read_together": 1}, name


def test_a_lazy_step_never_waits(steps):
    """Not even for a copy from the host."""
    found = {name: step for name, step in (steps | steps["variants"]).items() if "lazy" in name}
    assert len(found) == 11
    for name, step in found.items():
        assert step["waits"] == step["blocked"] == {}, name


def test_a_lazy_step_that_is_not_finite_leaves_no_trace_on_the_device(steps):
    """Gradients and targets are those of before, and the next step raises the error."""
    step = steps["lazy and not finite"]
    assert step["kept"] and step["goes_on"]
    assert "of task 'b' is not finite" in step["told"] and "at step 3" in step["told"]


def test_a_lazy_step_launches_what_the_method_does_for_each_task(steps):
    """At most 16 operations for each position in the visiting order, and 100 more."""
    waits = steps["2 equal"]["launches"]
    assert steps["lazy joint 8"]["launches"] <= waits + 30
    for n_tasks in (2, 8, 32):
        assert steps[f"lazy gradvac {n_tasks}"]["launches"] <= waits + 100 + 16 * (n_tasks - 1)


def test_gradients_are_those_of_a_cpu(steps):
    """Where the batch is processed in another way there."""
    for name, step in steps["variants"].items():
        assert step["error"] <= 1e-10, name
