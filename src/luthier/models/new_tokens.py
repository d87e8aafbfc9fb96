"""Tokens that a model did not have: in its tokenizer, in its embeddings and in its head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken
from torch import nn

from luthier.errors import UserError, excerpt


def add_tokens(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """The ids that the tokenizer now has for `tokens`, which it reads whole wherever they stand in a text.

    Raises:
        UserError: one is no new token.
    """
    known = tokenizer.get_vocab()
    for index, token in enumerate(tokens):
        if token in known or token in tokens[:index]:
            raise UserError(
                "data.add_tokens",
                f"{excerpt(token)} is a token already" if token in known else f"{excerpt(token)} stands there twice",
                "tokens that the tokenizer does not have",
                f"leave {excerpt(token)} out",
            )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    ids: list[int] = tokenizer.convert_tokens_to_ids(list(tokens))
    return ids


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


def refuse_untrained(model: Any, ids: Sequence[int]) -> None:
    """Raises UserError where nothing would teach the model what new tokens mean."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    if ids and not any(parameter.requires_grad for parameter in core.get_input_embeddings().parameters()):
        raise UserError(
            "data.add_tokens",
            "the embeddings are not trained, so the new tokens would stay without meaning",
            "tuning: lora or full, or patterns with the embeddings",
            "tuning=lora",
        )
