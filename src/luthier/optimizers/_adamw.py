"""What the kinds of AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101) have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from luthier.component import ComponentConfig

if TYPE_CHECKING:
    import torch


class AdamWConfig(ComponentConfig):
    """The numbers of AdamW."""

    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the mean of the gradient."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the mean of the squared gradient."""
    adam_epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """The term against division by zero."""


def numbers(config: AdamWConfig) -> dict[str, Any]:
    """They, as torch and bitsandbytes call them."""
    return {"betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_epsilon}


def adamw(groups: list[dict[str, Any]], rate: float, config: AdamWConfig) -> torch.optim.AdamW:
    """torch's AdamW.

    On CUDA it is the fused one, which works number by number. torch's own choice there, `foreach`, holds the square roots of all
    means at once: 4 more bytes a trained number, at the step where memory is fullest. Elsewhere it goes tensor by tensor.
    """
    import torch

    on_cuda = all(parameter.device.type == "cuda" for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, lr=rate, fused=on_cuda, foreach=False, **numbers(config))
