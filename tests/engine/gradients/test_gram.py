import pytest
import torch

from gradvac.engine.gradients.gram import cross_cosine, full_precision, gram


def exact(*rows):
    return sum(r.flatten(1).double() @ r.flatten(1).double().T for r in rows)


def test_ten_million_elements_are_summed_to_1e_minus_7():
    rows = torch.randn(2, 10**7, generator=torch.Generator().manual_seed(0))
    expected = exact(rows)
    scale = expected.diagonal().sqrt()
    assert float(((gram([[rows]])[0] - expected) / scale / scale[:, None]).abs().max()) <= 1e-7


def test_groups_of_several_tensors_of_any_shape_and_length():
    generator = torch.Generator().manual_seed(0)
    shapes = [(5,), (64, 64), (4096,), (3, 4097), (262144 + 17,), (1,), (300, 1000)]
    tensors = [torch.randn(3, *shape, generator=generator) for shape in shapes]
    result = gram([tensors[:2], tensors[2:]])
    assert result.dtype == torch.float64 and result.shape == (2, 3, 3)
    for ours, rows in zip(result, (tensors[:2], tensors[2:]), strict=True):
        assert torch.allclose(ours, exact(*rows), rtol=1e-7, atol=1e-3)


def test_float64_gradients_are_computed_in_float64():
    rows = torch.randn(4, 20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(gram([[rows]])[0], exact(rows), rtol=1e-14, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_multiplied_in_float32(dtype):
    rows = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.allclose(gram([[rows]])[0], exact(rows), rtol=1e-6, atol=1e-2)


def test_nearly_parallel_gradients_are_recomputed_in_float64():
    generator = torch.Generator().manual_seed(0)
    common, noise = torch.randn(1, 10_000, generator=generator), 1e-4
    rows = common + noise * torch.randn(2, 10_000, generator=generator)
    ours, expected = gram([[rows]])[0], exact(rows)
    # What is left of one gradient beside the other: lost in fp32, where 1e-8 of it is rounding.
    rest = [m[0, 0] - m[0, 1] ** 2 / m[1, 1] for m in (ours, expected)]
    assert float(rest[0]) == pytest.approx(float(rest[1]), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_squares_outside_float32_are_recomputed_in_float64(scale):
    rows = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)) * scale
    assert torch.allclose(gram([[rows]])[0], exact(rows), rtol=1e-6, atol=1e-6 * 5000 * scale**2)


def test_zero_gradients():
    rows = torch.zeros(2, 10)
    rows[1] = 1
    assert gram([[rows]])[0].tolist() == [[0, 0], [0, 10]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_element_shows_in_its_row_only(bad):
    rows = torch.ones(3, 5000)
    rows[1, 77] = bad
    finite = gram([[rows]])[0].isfinite()
    assert finite.tolist() == [[True, False, True], [False] * 3, [True, False, True]]


def test_autocast_and_matmul_precision_do_not_reach_it():
    rows = torch.randn(4, 100_000, generator=torch.Generator().manual_seed(0))
    expected = gram([[rows]])
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(gram([[rows]]), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_precision_is_put_back_after_an_error():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with pytest.raises(KeyError), full_precision("cpu"):
            raise KeyError
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e-25), (torch.bfloat16, 1e15)])
def test_cosines_between_two_sets_of_gradients_of_any_scale(dtype, scale):
    generator = torch.Generator().manual_seed(0)
    shapes = [(5,), (262144 + 17,), (3, 4097)]
    left, right = (
        [(torch.randn(k, *s, generator=generator) * scale).to(dtype) for s in shapes]
        for k in (3, 2)
    )
    flat = lambda rows: torch.cat([r.flatten(1).double() / scale for r in rows], 1)
    unit = [rows / rows.norm(dim=1, keepdim=True) for rows in (flat(left), flat(right))]
    expected = unit[0] @ unit[1].T
    result = cross_cosine(left, right)
    assert result.shape == (3, 2) and result.dtype == torch.float64
    assert torch.allclose(result, expected, rtol=0, atol=1e-12)


def test_a_zero_gradient_has_no_cosine_and_a_bad_one_shows():
    left, right = torch.ones(3, 10), torch.ones(2, 10)
    left[0], left[1, 3] = 0, float("nan")
    result = cross_cosine([left], [right])
    assert result[0].tolist() == [0, 0] and result[1].isnan().all()
    assert result[2].tolist() == pytest.approx([1, 1])


def test_gradients_too_short_for_their_squares_are_said():
    rows = torch.randn(3, 5, dtype=torch.float64)
    scale = torch.tensor([[1.0], [1e-170], [1.0]], dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match=r"shorter than 1e-145.*multiply all losses"):
        gram([[rows * scale]])
    rows[1] = 0  # which warnings, errors in tests, say nothing of
    gram([[rows]])
    gram([[rows * 1e-140]])
    gram([[rows.float() * 1e-30]])
