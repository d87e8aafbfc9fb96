"""Memory before the run, as far as the loop needs it: how many tokens fit in a forward pass, and whether activations are kept."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal

import torch

from luthier.kernels.dropout import DropoutKeys
from luthier.system.machine import look
from luthier.tuning import Start, Tuning

TOKENS = {"cpu": 512, "cuda": 8192, "mps": 2048}
"""Tokens of one forward pass where the user leaves it to us: enough to keep the hardware busy, few enough to stay in cache and memory."""

ACTIVATIONS_PER_LAYER = 18
"""Hidden-sized 16-bit values that a layer keeps for its backward pass, per token, beside the MLP's: inputs of norms, projections,
attention and adapters (counted on a Llama block; an estimate)."""

SHARE_OF_FREE_MEMORY = 0.5


def tokens_per_micro_batch(asked: int | Literal["auto"], device: torch.device) -> int:
    """Most tokens of one forward pass."""
    return TOKENS[device.type] if asked == "auto" else asked


def activation_bytes(model_config: Any, tokens: int) -> int:
    """Estimated bytes of activations kept for the backward pass of `tokens` tokens."""
    text = model_config.get_text_config()
    hidden = int(text.hidden_size)
    mlp = getattr(text, "intermediate_size", None) or 4 * hidden
    per_layer = ACTIVATIONS_PER_LAYER * hidden + 4 * int(mlp if isinstance(mlp, int) else max(mlp))
    return 2 * tokens * int(text.num_hidden_layers) * per_layer


def trained_parameters(model_config: Any, tuning: Tuning, trust_remote_code: bool = False, scored: bool = False) -> int:
    """How many of the model's own weights a tuning without an adapter trains; found on a model without data.

    Args:
        scored: whether it has a head of scores in the place of that of words.

    Raises:
        UserError: as `tuning.apply`.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if scored else AutoModelForCausalLM
    model_config = deepcopy(model_config)
    if scored:
        model_config.num_labels = 1
    with torch.device("meta"):
        model = kind.from_config(model_config, trust_remote_code=trust_remote_code)
    tuned = tuning.apply(model, Start(DropoutKeys(0))).model
    return sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)


def held_bytes(
    parameters: int, trained: int, compute_bytes: int, state_bytes: float = 8, in_bfloat16: bool = False
) -> int:
    """Estimated bytes of weights and, of those that are trained, of gradients and of the optimizer's state.

    The gradients of several processes lie in the buckets that they exchange, and an update works in slices: neither is more.

    Args:
        parameters: of the model, `trained` of which are trained.
        compute_bytes: of a number of the type that is computed in. The others are held in it; of trained weights in more bits autocast
            keeps a copy in it during a pass.
        state_bytes: of the optimizer's state, a trained number (`Optimizer.state_bytes`).
        in_bfloat16: whether trained weights and gradients are bfloat16; else float32.
    """
    weight_bytes = 2 if in_bfloat16 else 4
    copy_bytes = compute_bytes if compute_bytes < weight_bytes else 0
    return int((parameters - trained) * compute_bytes + trained * (2 * weight_bytes + state_bytes + copy_bytes))


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free now, of the card or of the machine; None where nobody says."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else look().available_bytes


def activation_checkpointing(
    asked: bool | Literal["auto"], model_config: Any, tokens: int, held: int, device: torch.device
) -> bool:
    """Whether activations are computed again in the backward pass.

    As asked, or where keeping those of `tokens` tokens would take half of what is free beside the `held` bytes.
    """
    free = free_bytes(device)
    if asked != "auto" or free is None:
        return asked is True
    return activation_bytes(model_config, tokens) > SHARE_OF_FREE_MEMORY * (free - held)
