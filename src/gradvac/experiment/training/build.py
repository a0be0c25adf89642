"""Building the device, precision and gradient method of a recipe."""

from __future__ import annotations

import torch

from gradvac.errors import RecipeError
from gradvac.experiment.recipe.method_options import OptionError, make_method
from gradvac.experiment.recipe.sections import MethodSection
from gradvac.methods import Method


def device_of(name: str) -> torch.device:
    """The device of a recipe; "auto" is a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise RecipeError(f"device: {name!r} is not a device; try auto, cpu, cuda or cuda:1") from e
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError(f"device: {name!r} asked for, and PyTorch sees no GPU here")
    try:  # fails for meta, devices not built in and unknown indices
        usable = float(torch.ones(1, device=device).sum()) == 1
    except (RuntimeError, NotImplementedError, AssertionError):
        usable = False
    if not usable:
        raise RecipeError(f"device: {name!r} cannot compute here; try auto, cpu, cuda or cuda:1")
    return device


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether to train under bfloat16 autocast; "auto": if the device supports it."""
    return precision == "bf16" if precision != "auto" else has_bf16(device)


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16, not only stores it; others are many times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not in older PyTorch
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def build_method(section: MethodSection, levels: dict[str, str], seed: int) -> Method | None:
    """The gradient method of a recipe; None for plain joint training.

    Raises:
        RecipeError: if an option is invalid for these tasks; names the option.
    """
    if section.name == "joint":
        return None
    try:
        return make_method(section.name, section.options, levels, seed=seed, compare_pcgrad=True)
    except OptionError as e:
        raise RecipeError(f"method.options.{e.option}: {e}") from e
    except ValueError as e:
        raise RecipeError(f"method.options: {e}") from e
