"""Tokens that a model did not have: in its tokenizer, in its embeddings and in its head."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from luthier.errors import UserError, excerpt


@torch.no_grad()
def grow(model: Any, rows: int) -> None:
    """At least so many rows of embeddings and head; a new one is the mean of those that were there, in every process alike."""
    before = model.get_input_embeddings().weight.shape[0]
    if rows <= before:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    for edge in (model.get_input_embeddings(), model.get_output_embeddings()):
        for values in () if edge is None else (edge.weight.data, getattr(edge, "bias", None)):
            if values is not None and values.shape[0] == rows:
                values[before:] = _mean_row(values[:before])


def grown(values: torch.Tensor, rows: int) -> torch.Tensor:
    """A copy of embeddings, or of a head's weight or bias, with so many rows, as `grow` makes them."""
    more = rows - values.shape[0]
    return torch.cat([values, _mean_row(values).expand(more, *values.shape[1:])])


def _mean_row(values: torch.Tensor) -> torch.Tensor:
    return values.float().mean(0).to(values.dtype)


def names_of_edges(model: nn.Module) -> list[str]:
    """Names of the embeddings and, where it has a weight of its own, of the head."""
    core: Any = model
    given, head = core.get_input_embeddings(), core.get_output_embeddings()
    edges = [given] if head is None or head.weight is given.weight else [given, head]
    return [name for name, module in model.named_modules() if any(module is edge for edge in edges)]


def refuse_untrained(model: Any, new: Mapping[str, int]) -> None:
    """Raises UserError where nothing would teach the model what a new token means, or when to say it: its row of the
    embeddings, or of a head with a weight of its own, is frozen."""
    has_adapter = hasattr(model, "get_base_model")
    core = model.get_base_model() if has_adapter else model
    given, head = core.get_input_embeddings(), core.get_output_embeddings()
    edges = {"embeddings": given}
    if head is not None and _own_weight(head) is not _own_weight(given):
        edges["head"] = head
    for what, edge in edges.items():
        left = _untrained(edge, new)
        lost = "stay without meaning" if edge is given else "never be said"
        if left and has_adapter:  # a new one would train them
            raise UserError(
                "data.add_tokens",
                f"the adapter to go on from does not train the row of {excerpt(left[0])} of the {what}: it would {lost}",
                "the tokens that it was trained with",
                f"leave {excerpt(left[0])} out; or luthier export RUN --to merged, then model=DIR without "
                "tuning.adapter_path",
            )
        if left:
            are = "are" if edge is given else "is"
            raise UserError(
                "data.add_tokens",
                f"the {what} {are} not trained, so the new tokens would {lost}",
                "tuning: lora or full, or patterns with the embeddings and the head",
                "tuning=lora",
            )


def _own_weight(edge: Any) -> Any:
    """Of embeddings or a head, without what peft puts around them."""
    while (inner := getattr(edge, "original_module", None) or getattr(edge, "base_layer", None)) is not None:
        edge = inner
    return edge.weight


def _untrained(edge: Any, new: Mapping[str, int]) -> list[str]:
    """New tokens whose row is frozen."""
    if not any(parameter.requires_grad for parameter in edge.parameters()):
        return list(new)
    single_rows = getattr(edge, "token_adapter", None)  # peft's, where it trains some rows of a module
    if single_rows is None:
        return []
    known = {number for numbers in single_rows.token_indices.values() for number in numbers}
    return [token for token, number in new.items() if number not in known]


def refuse_other_tokens(path: str, then: Mapping[str, int], now: Mapping[str, int]) -> None:
    """Raises UserError where an adapter's new tokens are not those of this run, or have other ids.

    Args:
        path: the adapter to go on from.
        then: its tokens and their ids.
        now: those of this run; it may have more.
    """
    dropped = [token for token in then if token not in now]
    moved = [token for token, number in then.items() if token in now and now[token] != number]
    if dropped or moved:
        more = [token for token in now if token not in then]
        which = (
            f"new tokens, of which data.add_tokens lacks {excerpt(dropped[0])}"
            if dropped
            else f"new tokens in another order: {excerpt(moved[0])} was {then[moved[0]]} and is {now[moved[0]]}"
        )
        raise UserError(
            "tuning.adapter_path",
            f"{path} was trained with {which}",
            "the same tokens in data.add_tokens, in the same order",
            f"data.add_tokens={json.dumps([*then, *more], ensure_ascii=False)}",
        )
