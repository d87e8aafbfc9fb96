"""A model in training form: what it says of the trained positions, in one pass over the head and without full logits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from luthier.kernels.attention import document_arguments
from luthier.kernels.dropout import DropoutKeys
from luthier.models.score_head import gives_scores
from luthier.policy.head import ChunkedHead, present, scores_of
from luthier.policy.lesson import Lesson, Teaches
from luthier.policy.routers import listening, of_documents
from luthier.policy.value import values_of
from luthier.types import NO_TARGET, MicroBatch, Scores


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
        self.teacher: Teaches | None = None
        self.head = ChunkedHead(self.core, keys)
        self.head_is_exact = True

    @property
    def core(self) -> Any:
        """The transformers model, with adapters in it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def computing(self) -> torch.autocast:
        """Around calls of the model itself: where its matrices are of several dtypes they must meet in one."""
        dtypes = {parameter.dtype for parameter in self.parameters() if parameter.is_floating_point()}
        mixed = len(dtypes) > 1 and self.compute_dtype != torch.float32
        return torch.autocast(self.core.device.type, dtype=self.compute_dtype, enabled=mixed)

    def forward(self, batch: MicroBatch, want: tuple[str, ...] = (), head: bool = True) -> Scores:
        """Scores of the N trained positions, in their order; differentiable as types.Policy says.

        Args:
            want: what is asked beside log-probabilities, by the names of types.Scores.
            head: False where nothing of the logits is asked: only the decoder is run, and `logps` are empty.
        """
        before = None
        if "reference" in want:
            before = self.reference_logps(batch) if batch.reference is None else batch.reference.to(self.core.device)
        lesson = self._lesson(batch) if "divergence" in want else None
        with listening(self.core) if "routing" in want else nullcontext() as heard:
            scores = self._scored(batch, want, head, lesson)
        if "divergence" in want and lesson is None:  # nothing is trained here
            none = scores.logps[:0]
            scores.divergence, scores.teacher, scores.agreed = none, none.detach(), none.detach().bool()
        scores.reference = before
        if heard is not None:
            scores.routing = of_documents(heard, inside(batch).to(self.core.device))
        return scores

    @torch.no_grad()
    def reference_logps(self, batch: MicroBatch) -> torch.Tensor:
        """[N] log-probabilities of the trained positions by the policy as it was at step 0. Within a pass it comes before the policy's
        own, so that what this keeps for its backward pass is not touched.
        """
        with evaluating(self), self.reference():
            return self._scored(batch, (), head=True).logps

    def _lesson(self, batch: MicroBatch) -> Lesson | None:
        """What the teacher says, before the policy's own pass; None where nothing is trained."""
        if self.teacher is None:
            raise RuntimeError("there is no teacher to diverge from")
        return self.teacher.lesson(batch) if bool((batch.targets != NO_TARGET).any()) else None

    def _scored(self, batch: MicroBatch, want: tuple[str, ...], head: bool, lesson: Lesson | None = None) -> Scores:
        device = self.core.device
        batch_keys = self.keys.of(batch).to(device)
        trained = (batch.targets != NO_TARGET).to(device)
        targets = batch.targets.to(device)[trained]
        # The keys stay in place after the forward pass: activation checkpointing runs it again during the backward pass.
        self.keys.positions = batch_keys
        with self._computed():
            inputs = self._inputs(batch, device)
            if "value" in want:
                return Scores(torch.zeros(0, device=device), value=values_of(self.core, inputs, batch))
            if not self.head_is_exact and head:
                return scores_of(self.core(**inputs).logits[trained], targets, want, lesson)
            hidden = self.head.hidden(inputs)
            if not head:
                return Scores(torch.zeros(0, device=device))
            if not len(targets):
                # Nothing is trained here, but every process must run the same operations and get a gradient, of zero.
                scores = self.head.scores(hidden[:1, 0], targets.new_zeros(1), batch_keys[:1, 0], want)
                return Scores(**{name: value[:0] for name, value in present(scores).items()})
            return self.head.scores(hidden[trained], targets, batch_keys[trained], want, batch.head_chunks, lesson)

    @torch.no_grad()
    def states(self, batch: MicroBatch) -> torch.Tensor:
        """What the head is computed of at the trained positions, [N, D]; where it cannot be called apart, their logits, [N, V]."""
        trained = (batch.targets != NO_TARGET).to(self.core.device)
        with self._computed():
            inputs = self._inputs(batch, self.core.device)
            found: torch.Tensor = self.head.hidden(inputs) if self.head_is_exact else self.core(**inputs).logits
        return found[trained]

    @torch.no_grad()
    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Some of `states`, [n, D] -> logits [n, V]."""
        with self._computed():
            return self.head(states) if self.head_is_exact else states

    def _computed(self) -> torch.autocast:
        """Around a pass; within another model's pass too."""
        return torch.autocast(
            self.core.device.type, dtype=self.compute_dtype, enabled=self.compute_dtype != torch.float32
        )

    def _inputs(self, batch: MicroBatch, device: torch.device) -> dict[str, Any]:
        """The model's own arguments: flat with restarting positions and document lengths, or right-padded with a mask."""
        inputs: dict[str, Any] = {"input_ids": batch.input_ids.to(device), "use_cache": False}
        if batch.layout == "padded":
            return inputs | {"attention_mask": inside(batch).to(torch.int64).to(device)}
        documents = document_arguments(batch.own, batch.lengths, device)
        return inputs | {"position_ids": batch.position_ids.to(device)} | documents

    def verify_head(self, tolerance: float = 1e-3) -> bool:
        """Whether the head may be computed in pieces (see ChunkedHead.agrees); where not, logits are taken whole from the model. A model
        of scores has no head of words."""
        if gives_scores(self.core):
            return True
        with evaluating(self), self.computing():
            self.head_is_exact = self.head.agrees(tolerance)
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


def inside(batch: MicroBatch) -> torch.Tensor:
    """[B, T] bool: which tokens are of documents; all of a flat batch."""
    if batch.layout != "padded":
        return torch.ones_like(batch.input_ids, dtype=torch.bool)
    return torch.arange(batch.input_ids.shape[1])[None] < torch.tensor(batch.lengths)[:, None]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, undone afterwards module by module."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def enable_activation_checkpointing(core: Any) -> None:
    """Layers keep only their inputs and run again in the backward pass. The method has another name in older transformers."""
    enable = getattr(core, "activation_checkpointing_enable", None) or core.gradient_checkpointing_enable
    enable({"use_reentrant": False})
