"""Copies from the host to an accelerator."""

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy values from the host to a device, without a wait of the host.

    Any other copy, and an index that lies on the host, waits until the device has nothing to do.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device, non_blocking=True)
