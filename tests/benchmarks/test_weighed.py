"""The device without memory launches what the one with memory does, and counts it right."""

import pytest

from tests.engine.counted import counted
from tools.predict import read

pytest.importorskip("torchjd")


@pytest.fixture(scope="module")
def found():
    return counted("tests.benchmarks.weighing")


@pytest.mark.parametrize("path", ["plain", "engine", "per_task", "TorchJD"])
def test_it_launches_and_waits_as_the_device_with_memory_does(found, path):
    with_memory, without = found["steps"]["4"][path]
    assert with_memory == without
    assert with_memory["launches"] > 100


def test_bytes_and_operations_of_a_product_are_the_closed_form(found):
    """[32, 64] times [64, 128] in bfloat16, then a sum of rows into 4 of 8 rows of float32."""
    product, added, filled = found["launches"]
    assert product == {
        "name": "mm", "moved": 2 * (32 * 64 + 64 * 128 + 32 * 128), "flops": 2 * 32 * 64 * 128,
        "wide": False,
    }  # fmt: skip
    assert (added["name"], added["moved"]) == ("index_add_", 4 * 8 + 3 * 4 * 4 * 128)
    assert (filled["name"], filled["moved"]) == ("zero_", 4 * 8 * 128)


def test_the_peak_is_that_of_what_lives_at_once(found):
    """Two of three buffers of 4 MB live at once."""
    assert found["peak"] == 2 * 4_000_000


def test_operations_of_the_full_size_follow_the_formula(found):
    """6 for each parameter of a product and each token; 14 of attention (4 and 10 backward)."""
    d, hidden, vocabulary, tokens, layers, length = 1024, 8192, 64_000, 32_768, 6, 32
    feed_forward, attention = 2 * d * hidden, 4 * d * d
    products = layers * (2 * feed_forward + 3 * attention) + d * vocabulary
    expected = tokens * (6 * products + 3 * layers * 14 * length * d)
    assert found["full"][0]["tflop"] == pytest.approx(expected / 1e12, abs=0.005)


def test_the_kept_counts_are_those_of_this_code(found):
    """Else: python -m tools.predict --count --keep-host."""
    kept = {(r["path"], r["K"]): r for r in read()["models"]["big"]["rows"]}
    for row in found["full"]:
        of_page = kept[row["path"], row["K"]]
        for key in ("launches", "moved_gb", "device_ms", "peak_gb"):
            assert row[key] == pytest.approx(of_page[key], rel=0.05), key
