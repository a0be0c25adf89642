"""Projecting conflicting gradients (Yu et al., NeurIPS 2020, Algorithm 1; arXiv 2001.06782)."""

from collections.abc import Iterable
from typing import Literal

from gradvac.methods.gradvac import GradVac


class PCGrad(GradVac):
    """PCGrad: remove from each task gradient the part that points against another one.

    It is Gradient Vaccine with the target cosine 0 (Wang et al. 2021, Appendix E.1). The edited
    gradient is compared with the others' original gradients, in random order; the edited
    gradients are summed, as in the paper, not averaged.

    Args:
        tasks: names of the tasks whose gradients may be edited, or "all", as in PCGrad's paper.
        seed: seed of the visiting orders.

    Example:
        >>> import torch
        >>> from gradvac import PCGrad, StepGeometry
        >>> gram = torch.tensor([[[1.0, -1.0], [-1.0, 2.0]]]).double()  # of (1, 0) and (-1, 1)
        >>> step = StepGeometry(gram, torch.ones(2).double(), ("fr", "hi"), ("all",), step=0)
        >>> PCGrad().weights(step)  # g_1 + g_2 / 2 and g_2 + g_1, added up
        tensor([[2.0000, 1.5000]], dtype=torch.float64)
    """

    def __init__(self, tasks: Literal["all"] | Iterable[str] = "all", seed: int = 0) -> None:
        super().__init__(target=0.0, tasks=tasks, seed=seed)
