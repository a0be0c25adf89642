"""How often the host waits for the device in a step of a run, counted on a make-believe device."""

import pytest

from tests.engine.counted import counted

READ = "engine/step.py read_together"


@pytest.fixture(scope="module")
def steps():
    return counted("tests.experiment.training.launches")


@pytest.mark.parametrize("way", ["joint", "accumulating", "clsr", "tagging"])
def test_joint_training_waits_once_in_a_step(steps, way):
    """For loss, norm and the NLL of all tasks; transformers asks once if a mask hides anything."""
    own = {"tagging/encoder.py label_losses": 1} if way == "tagging" else {}
    assert steps[way] == {"waits": {READ: 1, **own}, "blocked": {}}


@pytest.mark.parametrize(
    "way", ["gradvac", "gradvac accumulating", "per task", "cats", "tagging gradvac"]
)
def test_a_method_waits_once_more(steps, way):
    """For the engine's report, whatever the number of tasks."""
    own = {"tagging/encoder.py label_losses": 1} if "tagging" in way else {}
    assert steps[way] == {"waits": {READ: 2, **own}, "blocked": {}}
