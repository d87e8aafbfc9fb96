"""The head of a language model on chosen hidden states, in pieces, so that the logits of all positions never exist at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPast

from luthier.kernels.dropout import DropoutKeys
from luthier.types import Scores

OF_LOGITS = ("logps", "correct", "entropy", "logsumexp", "largest")
"""The scores that the head gives."""

DIFFERENTIATED = frozenset({"entropy", "logsumexp", "largest"})
"""Those beside log-probabilities that a loss may be a function of."""


class ChunkedHead:
    """Decoder and head of a causal model of transformers, called apart.

    The decoder's hidden states are caught by a hook. The head is the model's own forward with its decoder replaced by one that returns the
    hidden states that are asked for: so scales, soft-caps, ties and adapters on the head are the model's own, with no knowledge
    of its family. `agrees` says whether the two together are the model.

    Args:
        core: the transformers model, with adapters in it.
        keys: the keys of its dropouts.
    """

    def __init__(self, core: Any, keys: DropoutKeys) -> None:
        self.core, self.keys = core, keys
        self.output: Callable[..., Any] = BaseModelOutputWithPast
        """what the decoder answers with: its class, once it has"""

    @cached_property
    def is_trained(self) -> bool:
        head: nn.Module | None = self.core.get_output_embeddings()
        return head is None or any(parameter.requires_grad for parameter in head.parameters())

    def hidden(self, inputs: dict[str, Any]) -> torch.Tensor:
        """The model's own arguments -> the decoder's last hidden states, [B, T, D]; the head is run on no position."""
        caught: list[Any] = []
        hook = self.core.get_decoder().register_forward_hook(lambda _module, _args, output: caught.append(output))
        try:
            self.core(**inputs, logits_to_keep=torch.zeros(0, dtype=torch.int64, device=self.core.device))
        finally:
            hook.remove()
        (output,) = caught
        bare = isinstance(output, tuple)
        self.output = (lambda last_hidden_state: (last_hidden_state,)) if bare else type(output)
        states: torch.Tensor = output[0] if bare else output.last_hidden_state
        return states

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, D] -> logits [n, V].

        What else a decoder answers is empty, in an object of the class that it answers with: a name that this does not have is
        an error.
        """
        decoder = self.core.get_decoder()
        decoder.forward = lambda *_args, **_kwargs: self.output(last_hidden_state=hidden[None])
        try:
            logits: torch.Tensor = self.core(inputs_embeds=hidden[None], use_cache=False).logits[0]
        finally:
            del decoder.forward
        return logits

    @torch.no_grad()
    def agrees(self, tolerance: float) -> bool:
        """Whether decoder and head, called apart, give what the model's whole forward gives.

        Args:
            tolerance: relative to the largest logit. The two ways run the same operations, so they agree to rounding or not at all.
        """
        ids = torch.arange(8, device=self.core.device)[None] % self.core.config.get_text_config().vocab_size
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        whole = self.core(**inputs).logits[0].float()
        apart = self(self.hidden(inputs)[0]).float()
        return bool((whole - apart).abs().max() <= tolerance * whole.abs().max())

    def scores(
        self, hidden: torch.Tensor, targets: torch.Tensor, keys: torch.Tensor, want: tuple[str, ...], pieces: int = 1
    ) -> Scores:
        """Hidden states [N, D], targets [N], keys of the dropouts [N] -> scores [N], computed in so many pieces."""
        count, more = divmod(len(targets), pieces)
        sizes = [count + (number < more) for number in range(pieces)]
        # One split, not a slice a piece: the gradient of a slice is as large as the whole.
        parts = zip(*(torch.split(whole, sizes) for whole in (hidden, targets, keys)), strict=True)
        found = [present(self._piece(h, t, k, want)) for h, t, k in parts]
        return Scores(**{name: torch.cat([scores[name] for scores in found]) for name in found[0]})

    def _piece(self, hidden: torch.Tensor, targets: torch.Tensor, keys: torch.Tensor, want: tuple[str, ...]) -> Scores:
        """Scores of one piece, whose logits are not kept for the backward pass.

        Where the head is frozen and only `logps` are differentiated, their gradient is taken at once (see _FrozenHead);
        else the piece is computed again in the backward pass.
        """
        if not torch.is_grad_enabled():
            return self._at_once(hidden, targets, keys, want)
        if not self.is_trained and DIFFERENTIATED.isdisjoint(want):
            found: list[Scores] = []
            apply: Callable[..., torch.Tensor] = _FrozenHead.apply
            logps = apply(hidden, lambda h: self._at_once(h, targets, keys, want), found)
            return replace(found[0], logps=logps)
        scores: Scores = checkpoint(
            self._at_once, hidden, targets, keys, want, use_reentrant=False, preserve_rng_state=False
        )
        return scores

    def _at_once(
        self, hidden: torch.Tensor, targets: torch.Tensor, keys: torch.Tensor, want: tuple[str, ...]
    ) -> Scores:
        with self.keys.using(keys[None]):
            return scores_of(self(hidden), targets, want)


class _FrozenHead(torch.autograd.Function):
    """logps [n] of hidden states [n, D] under a head without trained parameters.

    The log-probability of position i depends on hidden state h_i alone, so the gradient of sum_i g_i logp_i is
    g_i * d logp_i / dh_i row by row. The rows are taken in the forward pass, [n, D] numbers, while the logits [n, V] are
    there; the backward pass then needs no second run of the head. Its plain twin is the checkpointed piece.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, compute: Callable[[torch.Tensor], Scores], found: list[Scores]
    ) -> torch.Tensor:
        with torch.enable_grad():
            leaf = hidden.detach().requires_grad_()
            scores = compute(leaf)
            (rows,) = torch.autograd.grad(scores.logps.sum(), leaf)
        ctx.save_for_backward(rows)
        found.append(scores)
        return scores.logps.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        return (gradients[0][:, None] * rows).to(rows.dtype), None, None


def scores_of(logits: torch.Tensor, targets: torch.Tensor, want: tuple[str, ...]) -> Scores:
    """logits [n, V], targets [n] -> log-probabilities and what else is wanted of logits, in float32."""
    logits = logits.float()
    logps = -nn.functional.cross_entropy(logits, targets, reduction="none")  # fused: fewer passes over [n, V]
    return Scores(
        logps,
        correct=logits.detach().argmax(-1) == targets if "correct" in want else None,
        entropy=-(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1) if "entropy" in want else None,
        logsumexp=logits.logsumexp(-1) if "logsumexp" in want else None,
        largest=logits.amax(-1) if "largest" in want else None,
    )


def present(scores: Scores) -> dict[str, torch.Tensor]:
    """The scores of logits that are there, by their names."""
    named = {name: getattr(scores, name) for name in OF_LOGITS}
    return {name: value for name, value in named.items() if value is not None}
