"""The same code on a GPU: `pytest -m gpu` on a machine that has one."""

import pytest
import torch

from tests.build import trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("method", ["joint", "gradvac"])
def test_first_gradient_is_that_of_the_cpu(toy, tmp_path, method):
    gradients = {}
    for device in ("cpu", "cuda"):
        sets = [f"device={device}", f"method.name={method}", "model.dropout=0"]
        t = trainer(toy, tmp_path / device, sets)
        t.train_step()
        gradients[device] = {n: p.grad.cpu() for n, p in t.job.model.named_parameters()}
    for name, expected in gradients["cpu"].items():
        torch.testing.assert_close(gradients["cuda"][name], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stops_and_resumes(toy, tmp_path, precision):
    sets = ["device=cuda", "method.name=gradvac", f"training.precision={precision}"]
    first = trainer(toy, tmp_path / "run", sets)
    first.stop.number = 2
    assert first.train() == 130
    second = trainer(toy, tmp_path / "run", sets)
    assert second.train() == 0
    assert second.step == 12
