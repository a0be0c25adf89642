from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

import gradvac
from tests.integrations import tiny

lightning = pytest.importorskip("lightning")
# of Lightning 2.6 on PyTorch 2.13
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


class Tagger(lightning.LightningModule):
    """Trains by automatic optimisation, or by hand with an engine as docs/drop-in.md shows."""

    def __init__(self, net, method=None):
        super().__init__()
        self.net = net
        self.automatic_optimization = method is None
        self.engine = method and gradvac.Engine(net, method)

    def losses(self, batch):
        logits = self.net(input_ids=batch["input_ids"]).logits
        return F.cross_entropy(logits.transpose(1, 2).float(), batch["labels"], reduction="none")

    def training_step(self, batch, batch_index):
        if self.automatic_optimization:
            return self.losses(batch).mean()
        optimizer = self.optimizers()
        optimizer.zero_grad()
        with self.engine.tasks(batch["task"]):
            losses = self.losses(batch)
            self.engine.backward(losses / losses.numel())
        self.clip_gradients(optimizer, gradient_clip_val=0.2)
        optimizer.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_joint_by_hand_is_automatic_optimisation(precision):
    start = tiny.built(tiny.tagger, torch.float32)
    loader = torch.utils.data.DataLoader(tiny.samples(16, tiny.CLASSES), batch_size=4)
    nets = []
    for method, clip in ((None, 0.2), (gradvac.Joint(), None)):
        nets.append(deepcopy(start))
        torch.manual_seed(0)  # of dropout
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", precision=precision, gradient_clip_val=clip,
            logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Tagger(nets[-1], method), loader)
    limit = 1e-5 if precision == "32-true" else 0.01
    assert tiny.distance(*nets) < limit * tiny.distance(nets[0], start)
