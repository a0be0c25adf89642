import pytest
import torch

from gradvac.errors import GradientError
from gradvac.methods import Joint, StaticWeights
from tests.methods.helpers import geometry


def test_joint_is_the_sum():
    geo = geometry({"a": torch.eye(3, dtype=torch.float64), "b": torch.eye(3, dtype=torch.float64)})
    assert Joint().weights(geo).tolist() == [[1.0] * 3] * 2


def test_static_weights_go_by_name():
    geo = geometry(torch.eye(2, dtype=torch.float64), ("fr-en", "de-en"))
    method = StaticWeights({"de-en": 0.5, "fr-en": 2.0, "cs-en": 9.0})
    assert method.weights(geo).tolist() == [[2.0, 0.5]]


def test_a_task_without_weight_is_refused_with_the_nearest_name():
    geo = geometry(torch.eye(1, dtype=torch.float64), ("fr-en",))
    with pytest.raises(GradientError, match=r"'fr-en' has no weight.*mean 'fr-em'"):
        StaticWeights({"fr-em": 1.0, "de-en": 1.0}).weights(geo)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_out_of_range(weight):
    with pytest.raises(GradientError, match="'a'"):
        StaticWeights({"a": weight})
