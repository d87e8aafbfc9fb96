"""The routers of a mixture of experts, listened to: what they say of each token, and which experts they choose.

Which modules they are is asked of transformers, whose mixtures declare them for `output_router_logits`. Listening by hooks
of our own gets the choice itself too, and goes without the loss that such a model would compute beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.utils.output_capturing import OutputRecorder

from luthier.errors import UserError
from luthier.models.flat import stock_attention
from luthier.types import Routing

Said = tuple[torch.Tensor, torch.Tensor]
"""Of one router, about B * T tokens: logits [B * T, E] of its E experts, in float32, and the K chosen ones [B * T, K]."""


def routers_of(core: Any) -> list[tuple[nn.Module, int]]:
    """The routers of a transformers model in the order of its layers, and where in its output each has the logits.

    Raises:
        UserError: the model has none, or declares none.
    """
    decoder = core.get_decoder()
    declared = (getattr(decoder, "_can_record_outputs", None) or {}).get("router_logits", ())
    recorders = [each for each in (declared if isinstance(declared, list) else [declared]) if _is_recorder(each)]
    found = [
        (module, recorder.index)
        for name, module in decoder.named_modules()
        for recorder in recorders
        if isinstance(module, recorder.target_class)
        and (recorder.layer_name is None or f".{recorder.layer_name.strip('.')}." in f".{name}.")
    ]
    if not found:
        raise UserError(
            "objective",
            f"the load of experts is to be balanced, and this model ({core.config.model_type}) has no router",
            "a mixture of experts that transformers can take router logits of",
            "leave router_balance out",
        )
    return found


@torch.no_grad()
def check_routers(core: Any) -> None:
    """Listens to a few tokens.

    Raises:
        UserError: the model has no routers, or they do not say what they are taken to say.
    """
    ids = torch.arange(4, device=core.device)[None] % core.config.get_text_config().vocab_size
    was_training = core.training
    core.eval()
    try:
        with stock_attention(core), listening(core) as heard:
            core(input_ids=ids, use_cache=False)
    finally:
        core.train(was_training)
    for (router, _), (logits, chosen) in zip(routers_of(core), heard, strict=True):
        told = [list(logits.shape), list(chosen.shape)]
        if not (len(logits) == len(chosen) == ids.numel() and chosen.shape[1] <= logits.shape[1] > int(chosen.max())):
            raise UserError(
                "objective",
                f"{type(router).__name__} gives logits and chosen experts of the shapes {told} for {ids.numel()} tokens",
                "of each token: a logit for every expert, and the numbers of those that are chosen",
                "leave router_balance out",
            )


def _is_recorder(declared: Any) -> bool:
    return isinstance(declared, OutputRecorder) and declared.target_class is not None


@contextmanager
def listening(core: Any) -> Iterator[list[Said]]:
    """Inside, each forward pass of the model adds what its routers say, in the order of the layers.

    With activation checkpointing too: the pass that is done again in the backward pass comes after the listening.
    """
    heard: list[Said] = []

    def hook(place: int) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, _inputs, output: heard.append(_said(module, output, place))

    hooks = [module.register_forward_hook(hook(place)) for module, place in routers_of(core)]
    try:
        yield heard
    finally:
        for each in hooks:
            each.remove()


def _said(router: nn.Module, output: Any, place: int) -> Said:
    parts = output if isinstance(output, tuple) else (output,)
    logits = parts[place].flatten(0, -2).float()
    chosen = [part for part in parts if isinstance(part, torch.Tensor) and part.dtype == torch.int64 and part.dim() > 1]
    if chosen:
        return logits, chosen[-1].flatten(0, -2)
    count = getattr(router, "top_k", None)
    if not isinstance(count, int):
        raise UserError(
            "objective",
            f"{type(router).__name__} does not say which experts it chooses",
            "a router that returns their numbers, or has top_k",
            "leave router_balance out",
        )
    return logits, logits.detach().topk(count, dim=-1).indices  # no node that a checkpointed layer would miss


def of_documents(heard: list[Said], inside: torch.Tensor) -> Routing:
    """What was heard of the tokens of documents.

    Args:
        heard: of all tokens of the batch.
        inside: [B, T] bool; False for padding.
    """
    kept = inside.flatten()
    return Routing([logits[kept] for logits, _ in heard], [chosen[kept] for _, chosen in heard])
