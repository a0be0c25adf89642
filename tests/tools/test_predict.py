"""docs/prediction.md is what its file gives, by the stated rates."""

import pytest

from tools import predict
from tools.pages import filled
from tools.predict import ENGINE, IN_ORDER


class Launch:
    def __init__(self, moved: float, flops: float, wide: bool = False) -> None:
        self.moved, self.flops, self.wide = moved, flops, wide


def test_the_page_is_that_of_its_file():
    page = predict.PAGE.read_text(encoding="utf-8")
    assert filled(predict.PAGE, "predict", predict.parts(predict.read())) == page
    assert predict.read()["rates"] == predict.RATES


def test_every_row_is_there():
    for name, model in predict.MODELS.items():
        rows = predict.read()["models"][name]["rows"]
        assert [(row["path"], row["K"]) for row in rows] == predict.steps(model)


@pytest.mark.parametrize(
    ("launch", "expected"),
    [
        (Launch(1e3, 1e3), 4e-6),  # the least
        (Launch(4.3e9, 1e3), 1e-3),  # traffic
        (Launch(1e3, 790e9), 1e-3),  # arithmetic
        (Launch(1e3, 60e9, wide=True), 1e-3),
    ],
)
def test_a_launch_takes_the_longest_of_three(launch, expected):
    assert predict.seconds([launch]) == pytest.approx(expected)
    assert predict.seconds([launch] * 3) == pytest.approx(3 * expected)


def test_a_step_takes_the_longer_of_host_and_device():
    rows = [
        {"path": "plain", "K": 1, "host_ms": 10.0, "device_ms": 40.0, "peak_gb": 10.0},
        {"path": "a", "K": 2, "host_ms": 60.0, "device_ms": 50.0, "peak_gb": 150.0},
    ]
    assert predict.ratios(rows, 141.0).splitlines()[-1] == "| a | 1.50, no room |"


def test_the_host_is_measured_with_the_layers_of_the_full_size():
    assert predict.host(predict.MODELS["big"], predict.ENGINE, 4, rounds=1) > 0


def test_what_the_page_concludes_is_in_its_tables():
    models = predict.read()["models"]
    big, adapters = ({(r["path"], r["K"]): r for r in models[n]["rows"]} for n in ("big", "7B"))
    per_task, jd = "per_task all_layer GradVac", "TorchJD autojac whole_model GradVac"
    of_engine = [r for rows in (big, adapters) for (path, _), r in rows.items() if path == ENGINE]
    assert all(row["device_ms"] > row["host_ms"] for row in of_engine)
    for k in (2, 4, 8, 16, 32, 64):
        cheaper = predict.predicted(big[per_task, k]) < predict.predicted(big[ENGINE, k])
        assert cheaper == (k <= 4)
        in_order = predict.predicted(big[IN_ORDER, k])
        assert (predict.predicted(big[per_task, k]) < in_order) == (k <= 2)
    extra = lambda path, k: predict.predicted(big[path, k]) - predict.predicted(big["plain", 1])
    assert all(extra(IN_ORDER, k) < extra(ENGINE, k) / 2 for k in (2, 4))
    for k in (8, 16):
        assert predict.predicted(adapters[per_task, k]) > predict.predicted(adapters[ENGINE, k])
        assert adapters[per_task, k]["launches"] > 7 * adapters[ENGINE, k]["launches"]
    assert big[jd, 64]["peak_gb"] > predict.RATES["memory, GB"] > big[ENGINE, 64]["peak_gb"]
    for k in (2, 4, 8, 16):
        assert min((r["peak_gb"], path) for (path, n), r in big.items() if n == k)[1] == per_task
