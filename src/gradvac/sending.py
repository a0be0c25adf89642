"""Copies from the host to an accelerator."""

from typing import Any

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device, known: bool = False) -> Tensor:
    """Copy values from the host to a device, without a wait of the host.

    Any other copy, and an index that lies on the host, waits until the device has nothing to do.
    If ``known``, :func:`on_host` gives the values back without a wait too.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        there = values.pin_memory().to(device, non_blocking=True)
    else:
        there = values.to(device, non_blocking=True)
    if known and there is not values and values.device.type == "cpu":
        kept: Any = there
        kept.gradvac_host = values, there._version
    return there


def on_host(values: Tensor) -> Tensor:
    """Return values on the CPU: those that were sent, if they are known and have not changed.

    Example:
        >>> import torch
        >>> on_host(to_device(torch.arange(3), torch.device("cpu"), known=True))
        tensor([0, 1, 2])
    """
    sent, version = getattr(values, "gradvac_host", (None, None))
    return sent if sent is not None and version == values._version else values.detach().cpu()
