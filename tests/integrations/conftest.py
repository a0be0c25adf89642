import pytest

pytest.importorskip("transformers")
accelerate_state = pytest.importorskip("accelerate.state")


@pytest.fixture(autouse=True)
def own_accelerate_state(monkeypatch):
    """What a test sets (device, precision) is not there for the next one.

    Every run begins with a collection of garbage, which takes longer than the run.
    """
    monkeypatch.setattr("accelerate.utils.memory.gc.collect", lambda *_: 0)
    yield
    accelerate_state.AcceleratorState._reset_state(reset_partial_state=True)
