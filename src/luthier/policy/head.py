"""The head of a language model on chosen hidden states, in pieces, so that the logits of all positions never exist at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPast

from luthier.kernels.dropout import DropoutKeys
from luthier.policy.lesson import Lesson
from luthier.types import Scores

OF_LOGITS = ("logps", "correct", "entropy", "logsumexp", "largest", "divergence", "teacher", "agreed")
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
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        keys: torch.Tensor,
        want: tuple[str, ...],
        pieces: int = 1,
        lesson: Lesson | None = None,
    ) -> Scores:
        """Hidden states [N, D], targets [N], keys of the dropouts [N] and what a teacher says -> scores [N], computed in so many
        pieces."""
        count, more = divmod(len(targets), pieces)
        sizes = [count + (number < more) for number in range(pieces)]
        # One split, not a slice a piece: the gradient of a slice is as large as the whole.
        lessons = [None] * pieces if lesson is None else lesson.split(sizes)
        parts = zip(*(torch.split(whole, sizes) for whole in (hidden, targets, keys)), lessons, strict=True)
        found = [present(self._piece(h, t, k, want, part)) for h, t, k, part in parts]
        return Scores(**{name: torch.cat([scores[name] for scores in found]) for name in found[0]})

    def _piece(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        keys: torch.Tensor,
        want: tuple[str, ...],
        lesson: Lesson | None,
    ) -> Scores:
        """Scores of one piece, whose logits are not kept for the backward pass.

        Where the head is frozen and only log-probabilities or a divergence are differentiated, their gradient is taken at once
        (see _FrozenHead); else the piece is computed again in the backward pass.
        """
        compute = partial(self._at_once, targets, keys, want, lesson)
        if not torch.is_grad_enabled():
            return compute(hidden)
        if not self.is_trained and DIFFERENTIATED.isdisjoint(want):
            names = ("logps",) if lesson is None else ("divergence", "logps")[: 1 + ("logps" in want)]
            found: list[dict[str, torch.Tensor]] = []
            apply: Callable[..., tuple[torch.Tensor, ...]] = _FrozenHead.apply
            differentiated = apply(hidden, compute, names, found)
            return Scores(**{**found[0], **dict(zip(names, differentiated, strict=True))})
        scores: Scores = checkpoint(compute, hidden, use_reentrant=False, preserve_rng_state=False)
        return scores

    def _at_once(
        self,
        targets: torch.Tensor,
        keys: torch.Tensor,
        want: tuple[str, ...],
        lesson: Lesson | None,
        hidden: torch.Tensor,
    ) -> Scores:
        with self.keys.using(keys[None]):
            return scores_of(self(hidden), targets, want, lesson)


class _FrozenHead(torch.autograd.Function):
    """Scores [n] of hidden states [n, D] under a head without trained parameters; those of `names` with a gradient.

    Of position i each depends on hidden state h_i alone, so the gradient of sum_i g_i score_i is g_i * d score_i / dh_i row by
    row. The rows are taken in the forward pass, [n, D] numbers a name, while the logits [n, V] are there; the backward pass
    then needs no second run of the head. Its plain twin is the checkpointed piece.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        compute: Callable[[torch.Tensor], Scores],
        names: tuple[str, ...],
        found: list[dict[str, torch.Tensor]],
    ) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            leaf = hidden.detach().requires_grad_()
            scores = present(compute(leaf))
            sums = [scores[name].sum() for name in names]
            rows = [torch.autograd.grad(one, leaf, retain_graph=one is not sums[-1])[0] for one in sums]
        ctx.save_for_backward(*rows)
        found.append({name: value.detach() for name, value in scores.items()})
        return tuple(found[0][name] for name in names)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        parts = [
            (gradient[:, None] * rows).to(rows.dtype)
            for gradient, rows in zip(gradients, ctx.saved_tensors, strict=True)
        ]
        return sum(parts[1:], parts[0]), None, None, None


def scores_of(
    logits: torch.Tensor, targets: torch.Tensor, want: tuple[str, ...], lesson: Lesson | None = None
) -> Scores:
    """logits [n, V], targets [n] -> log-probabilities and what else is wanted of logits, in float32."""
    logits = logits.float()
    logps = -nn.functional.cross_entropy(logits, targets, reduction="none")  # fused: fewer passes over [n, V]
    compared = lesson.compared(logits, targets) if lesson is not None else None
    return Scores(
        logps,
        correct=logits.detach().argmax(-1) == targets if "correct" in want else None,
        entropy=-(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1) if "entropy" in want else None,
        logsumexp=logits.logsumexp(-1) if "logsumexp" in want else None,
        largest=logits.amax(-1) if "largest" in want else None,
        divergence=compared.divergence if compared is not None else None,
        teacher=compared.teacher if compared is not None else None,
        agreed=compared.agreed if compared is not None else None,
    )


def present(scores: Scores) -> dict[str, torch.Tensor]:
    """The scores of logits that are there, by their names."""
    named = {name: getattr(scores, name) for name in OF_LOGITS}
    return {name: value for name, value in named.items() if value is not None}
