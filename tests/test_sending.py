"""Copies to a device whose values the host still knows."""

import pytest
import torch

from gradvac.sending import on_host, to_device


def sent(values, known):
    meta = to_device(values, torch.device("meta"), known)
    assert meta.device.type == "meta" and meta.shape == values.shape
    return meta


def test_known_values_are_given_back_without_reading_the_device():
    values = torch.arange(4)
    assert on_host(sent(values, known=True)) is values
    assert on_host(values) is not None and torch.equal(on_host(values), values)


@pytest.mark.parametrize("change", [False, True])
def test_unknown_and_changed_values_are_read(change):
    there = sent(torch.arange(4), known=change)
    if change:
        there.add_(1)  # what was sent is no longer what is there
    with pytest.raises(NotImplementedError, match="meta"):  # which holds no numbers to read
        on_host(there)
