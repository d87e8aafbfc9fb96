"""A model in training form: what it says of the trained positions, in one pass over the head and without full logits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPast

from luthier.kernels.dropout import DropoutKeys
from luthier.policy.routers import listening, of_documents
from luthier.types import NO_TARGET, MicroBatch, Scores


class _Given(BaseModelOutputWithPast):  # type: ignore[misc]
    """A decoder's output that holds hidden states and, whatever else the model asks it for, nothing."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _FrozenHead(torch.autograd.Function):
    """logps [n] of hidden states [n, D] under a head without trained parameters.

    The log-probability of position i depends on hidden state h_i alone, so the gradient of sum_i g_i logp_i is
    g_i * d logp_i / dh_i row by row. The rows are taken in the forward pass, [n, D] numbers, while the logits [n, V] are
    there; the backward pass then needs no second run of the head. Its plain twin is the checkpointed chunk.
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


class Policy(nn.Module):
    """Wraps a transformers or PEFT model; called only through `__call__`, because engines wrap it.

    Args:
        model: the model, already in its tuned form.
        keys: the keys of its dropouts (tuning.apply put them there).
        compute_dtype: what matrix products are computed in (autocast); parameters may be float32.
        starts_at_base: whether the tuned part began as zero, so that switching it off gives the policy at step 0.
    """

    def __init__(
        self, model: Any, keys: DropoutKeys, compute_dtype: torch.dtype = torch.float32, starts_at_base: bool = True
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.keys = keys
        self.compute_dtype = compute_dtype
        self.starts_at_base = starts_at_base
        self.initial: dict[str, torch.Tensor] | None = None
        self.head_is_exact = True

    @cached_property
    def _head_is_trained(self) -> bool:
        head = self.core.get_output_embeddings()
        return head is None or any(parameter.requires_grad for parameter in head.parameters())

    @property
    def core(self) -> Any:
        """The transformers model, with adapters in it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def computing(self) -> torch.autocast:
        """Around calls of the model itself: where its matrices are of several dtypes they must meet in one."""
        dtypes = {parameter.dtype for parameter in self.parameters() if parameter.is_floating_point()}
        mixed = len(dtypes) > 1 and self.compute_dtype != torch.float32
        return torch.autocast(self.core.device.type, dtype=self.compute_dtype, enabled=mixed)

    def forward(self, batch: MicroBatch, want: tuple[str, ...] = ()) -> Scores:
        """Scores of the N trained positions, in their order; differentiable in all but `correct`."""
        with listening(self.core) if "routing" in want else nullcontext() as heard:
            scores = self._scored(batch, want)
        if heard is not None:
            scores.routing = of_documents(heard, inside(batch).to(self.core.device))
        return scores

    def _scored(self, batch: MicroBatch, want: tuple[str, ...]) -> Scores:
        device = self.core.device
        batch_keys = self.keys.of(batch).to(device)
        trained = (batch.targets != NO_TARGET).to(device)
        targets = batch.targets.to(device)[trained]
        with torch.autocast(device.type, dtype=self.compute_dtype, enabled=self.compute_dtype != torch.float32):
            if not self.head_is_exact:
                self.keys.positions = batch_keys
                return _scores(self.core(**self._inputs(batch, device)).logits[trained], targets, want)
            hidden = self._hidden(batch, device, batch_keys)
            if not len(targets):
                # Nothing is trained here, but every process must run the same operations and get a gradient, of zero.
                scores = self._head_scores(hidden[:1, 0], targets.new_zeros(1), batch_keys[:1, 0], want)
                return Scores(**{name: value[:0] for name, value in _present(scores).items()})
            pieces = zip(
                hidden[trained].tensor_split(batch.head_chunks),
                targets.tensor_split(batch.head_chunks),
                batch_keys[trained].tensor_split(batch.head_chunks),
                strict=True,
            )
            found = [_present(self._checkpointed(h, t, k, want)) for h, t, k in pieces]
        return Scores(**{name: torch.cat([scores[name] for scores in found]) for name in found[0]})

    def _hidden(self, batch: MicroBatch, device: torch.device, batch_keys: torch.Tensor) -> torch.Tensor:
        """The decoder's last hidden states, [B, T, D]."""
        caught: list[Any] = []
        hook = self.core.get_decoder().register_forward_hook(lambda _module, _args, output: caught.append(output))
        # The keys stay in place after the forward pass: activation checkpointing runs it again during the backward pass.
        self.keys.positions = batch_keys
        try:
            self.core(**self._inputs(batch, device), logits_to_keep=torch.zeros(0, dtype=torch.int64, device=device))
        finally:
            hook.remove()
        (output,) = caught
        hidden: torch.Tensor = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]
        return hidden

    def _inputs(self, batch: MicroBatch, device: torch.device) -> dict[str, Any]:
        """The model's own arguments: flat with restarting positions and document lengths, or right-padded with a mask."""
        inputs: dict[str, Any] = {"input_ids": batch.input_ids.to(device), "use_cache": False}
        lengths = torch.tensor(batch.lengths)
        if batch.layout == "padded":
            return inputs | {"attention_mask": inside(batch).to(torch.int64).to(device)}
        edges = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32).to(device)
        longest = max(batch.lengths)
        return inputs | {
            "position_ids": batch.position_ids.to(device),
            "cu_seq_lens_q": edges,
            "cu_seq_lens_k": edges,
            "max_length_q": longest,
            "max_length_k": longest,
        }

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, D] -> logits [n, V] by the model's own forward, its decoder replaced by one that returns `hidden`.

        So scales, soft-caps, ties and adapters on the head are the model's own, with no knowledge of its family.
        """
        decoder = self.core.get_decoder()
        decoder.forward = lambda *_args, **_kwargs: _Given(last_hidden_state=hidden[None])
        try:
            logits: torch.Tensor = self.core(inputs_embeds=hidden[None], use_cache=False).logits[0]
        finally:
            del decoder.forward
        return logits

    def _head_scores(
        self, hidden: torch.Tensor, targets: torch.Tensor, keys: torch.Tensor, want: tuple[str, ...]
    ) -> Scores:
        with self.keys.using(keys[None]):
            return _scores(self.head(hidden), targets, want)

    def _checkpointed(
        self, hidden: torch.Tensor, targets: torch.Tensor, keys: torch.Tensor, want: tuple[str, ...]
    ) -> Scores:
        """Scores of one chunk, whose logits are not kept for the backward pass.

        Where the head is frozen and only `logps` are differentiated, their gradient is taken at once (see
        _FrozenHead); else the chunk is computed again in the backward pass.
        """
        if not torch.is_grad_enabled():
            return self._head_scores(hidden, targets, keys, want)
        if not self._head_is_trained and not {"entropy", "logsumexp", "largest"} & set(want):
            found: list[Scores] = []
            apply: Callable[..., torch.Tensor] = _FrozenHead.apply
            logps = apply(hidden, lambda h: self._head_scores(h, targets, keys, want), found)
            return replace(found[0], logps=logps)
        scores: Scores = checkpoint(
            self._head_scores, hidden, targets, keys, want, use_reentrant=False, preserve_rng_state=False
        )
        return scores

    @torch.no_grad()
    def verify_head(self, tolerance: float = 1e-3) -> bool:
        """Whether `head` gives what the model's whole forward gives; where not, logits are taken whole from the model.

        The tolerance is relative to the largest logit; the two ways run the same operations, so they agree to rounding or not at all.
        """
        ids = torch.arange(8, device=self.core.device)[None] % self.core.config.get_text_config().vocab_size
        batch = MicroBatch(ids.cpu(), torch.arange(8)[None], ids.cpu(), torch.zeros_like(ids.cpu()), [8], "padded", 0)
        was_training = self.training
        self.eval()
        try:
            with self.computing():
                whole = self.core(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].float()
                pieces = self.head(self._hidden(batch, ids.device, self.keys.of(batch).to(ids.device))[0]).float()
        finally:
            self.train(was_training)
        self.head_is_exact = bool((whole - pieces).abs().max() <= tolerance * whole.abs().max())
        return self.head_is_exact

    def trained_tensors(self) -> dict[str, int]:
        """Names of what is trained, with `*` for numbers in them: how many tensors each stands for."""
        names = (name for name, parameter in self.named_parameters() if parameter.requires_grad)
        return dict(Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name.removeprefix("model.")) for name in names))

    def keep_reference(self) -> None:
        """Remembers the trained weights as they are now, where switching the adapter off would not bring them back."""
        if not self.starts_at_base:
            self.initial = {
                name: parameter.detach().clone()
                for name, parameter in self.named_parameters()
                if parameter.requires_grad
            }

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the policy is what it was at step 0."""
        if self.starts_at_base and hasattr(self.model, "disable_adapter"):
            with self.model.disable_adapter():
                yield
            return
        if self.initial is None:
            raise RuntimeError("keep_reference() was not called at step 0")
        trained = dict(self.named_parameters())
        now = {name: trained[name].data for name in self.initial}
        try:
            for name, value in self.initial.items():
                trained[name].data = value
            yield
        finally:
            for name, value in now.items():
                trained[name].data = value


def _scores(logits: torch.Tensor, targets: torch.Tensor, want: tuple[str, ...]) -> Scores:
    """logits [n, V], targets [n] -> what is wanted, in float32."""
    logits = logits.float()
    logps = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")  # fused: fewer passes over [n, V]
    return Scores(
        logps,
        correct=logits.detach().argmax(-1) == targets if "correct" in want else None,
        entropy=-(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1) if "entropy" in want else None,
        logsumexp=logits.logsumexp(-1) if "logsumexp" in want else None,
        largest=logits.amax(-1) if "largest" in want else None,
    )


def _present(scores: Scores) -> dict[str, torch.Tensor]:
    named = {name: getattr(scores, name) for name in ("logps", "correct", "entropy", "logsumexp", "largest")}
    return {name: value for name, value in named.items() if value is not None}


def inside(batch: MicroBatch) -> torch.Tensor:
    """[B, T] bool: which tokens are of documents; all of a flat batch."""
    if batch.layout == "flat":
        return torch.ones_like(batch.input_ids, dtype=torch.bool)
    return torch.arange(batch.input_ids.shape[1])[None] < torch.tensor(batch.lengths)[:, None]


def enable_activation_checkpointing(core: Any) -> None:
    """Layers keep only their inputs and run again in the backward pass. The method has another name in older transformers."""
    enable = getattr(core, "activation_checkpointing_enable", None) or core.gradient_checkpointing_enable
    enable({"use_reentrant": False})
