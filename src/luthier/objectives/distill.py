"""Distillation: the distributions of another model are learned, of every token of the vocabulary at every trained position."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from luthier import component
from luthier.component import ComponentConfig, Place
from luthier.config.bounds import Name
from luthier.objectives import Teaching
from luthier.objectives._trained_tokens import TOKENS, TrainedTokens
from luthier.types import LossOut, MicroBatch, Policy

__all__ = ["Distill"]

NAMES = {"forward": "forward_kl", "reverse": "reverse_kl", "jsd": "jsd"}
"""Under which a divergence is reported."""


class Distill(TrainedTokens):
    """loss = sum over trained positions of T^2 D(P, Q); weight = number of trained tokens.

    P is the teacher's distribution and Q the model's, of logits divided by the temperature T; the factor T^2 keeps the size of
    the gradient (Hinton et al., 2015, arXiv:1503.02531, section 2). D is one of

    - forward: KL(P || Q), as there.
    - reverse: KL(Q || P) (Gu et al., 2023, arXiv:2306.08543).
    - jsd: beta KL(P || M) + (1 - beta) KL(Q || M) with M = beta P + (1 - beta) Q, the generalised Jensen-Shannon divergence of
      Agarwal et al. (2023, arXiv:2306.13649, section 2). Divided by beta it tends to forward as beta tends to 0, divided by
      1 - beta to reverse as beta tends to 1: at these ends it is they, as in the paper's own figures.

    Both are over the ids that both models have logits for: rows that only one has, beyond the tokenizer's last id, are left out
    of both before the softmax. With top_k, P and Q are distributions over k + 1 outcomes: the teacher's k likeliest tokens, and
    all others together. D of these is never above D of all tokens, and equal to it where k is the vocabulary.
    """

    class Config(ComponentConfig):
        kind: Literal["distill"] = "distill"
        teacher: Place
        """The model that is learned from: as `model.path`, or the folder of a run, `RUN/checkpoints/step-000100`, or an adapter.
        Its tokenizer must be that of the model."""
        divergence: Literal["forward", "reverse", "jsd"] = "forward"
        """`forward`: the model is to give likelihood to all that the teacher does; `reverse`: to nothing that the teacher does not;
        `jsd`: between them, by `beta`."""
        beta: Annotated[float, Field(ge=0, le=1)] = 0.5
        """Of `jsd`: the teacher's share of the mixture that both are compared with; 0 is `forward`, 1 is `reverse`."""
        temperature: Annotated[float, Field(gt=0, le=1000)] = 1.0
        """What the logits of both are divided by: above 1 unlikely tokens count more. The loss is multiplied with its square."""
        top_k: Annotated[int, Field(ge=1, le=100_000)] | None = None
        """So many of the teacher's likeliest tokens, with all others as one, are computed once, before the first step, and read at
        every later run on the same data: 8 bytes a token of them and trained position. Default: all tokens, of a teacher that is
        asked in every step."""
        teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
        """How the teacher's weights are held and what it computes in. `auto`: as the run."""

        teacher_quantization: Name | None = None
        """Holds the teacher's weights in fewer bits: a kind of `model.quantization`, with its defaults. Default: none, or as the
        base of its adapter was held in training."""

        @model_validator(mode="after")
        def _of_jsd(self) -> Self:
            if self.divergence != "jsd" and "beta" in self.model_fields_set and self.beta != 0.5:
                raise ValueError(f"beta is of the divergence jsd, not of {self.divergence}: leave it out")
            kinds = component.listing("quantization")
            if self.teacher_quantization not in (None, *kinds):
                raise ValueError(f"teacher_quantization is one of {', '.join(kinds)}, not {self.teacher_quantization}")
            return self

    wants = ("divergence", "correct")
    by_likelihood = False

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        divergence = config.divergence
        if divergence == "jsd" and config.beta in (0, 1):
            divergence = "reverse" if config.beta else "forward"
        self.teaching: Teaching = Teaching(
            config.teacher,
            config.teacher_dtype,
            config.teacher_quantization,
            divergence,
            config.beta,
            config.temperature,
            config.top_k,
            NAMES[divergence],
        )
        self.factor = config.temperature**2

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        scores = policy(batch, want=self.wants)
        assert scores.divergence is not None
        assert scores.teacher is not None
        assert scores.agreed is not None
        assert scores.correct is not None
        losses = self.factor * scores.divergence
        figures = {
            self.teaching.figure: scores.divergence.detach(),
            "nll": -scores.logps.detach(),
            "teacher_nll": -scores.teacher,
            "agreement": scores.agreed,
            "token_accuracy": scores.correct,
        }
        return LossOut(
            {TOKENS: losses.sum()},
            {TOKENS: {name: values.sum() for name, values in figures.items()}},
            documents=batch.by_document(losses),
        )
