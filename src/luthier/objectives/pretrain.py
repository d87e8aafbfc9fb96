"""Continued pretraining: the likelihood of raw text, laid out in blocks or kept apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from luthier.component import ComponentConfig
from luthier.config.bounds import MOST_TOKENS
from luthier.objectives._trained_tokens import Likelihood
from luthier.types import NO_TARGET, Example, LossOut, MicroBatch, Pieces, Policy, Renderer, Sample, Text

__all__ = ["Pretrain"]


class Pretrain(Likelihood):
    """loss = - sum over tokens of log p(token | what stands before it in its block); weight = number of predicted tokens.

    - joined: the texts of a source stand one after the other, in the order of the data, and are cut into blocks of `block_size` tokens;
      the last is shorter. A block is one sample: attention goes over the ends of texts in it, as is usual in pretraining.
    - apart: each text is a sample of its own, and one that is longer than `block_size` several.

    Each token but the first of all (of each text, where they are apart) is predicted exactly once, the first of a block from the last
    of the block before it; none is cut or dropped. An example, of which `global_batch_size` is the number, is a block.
    """

    class Config(ComponentConfig):
        kind: Literal["pretrain"] = "pretrain"
        documents: Literal["joined", "apart"] = "joined"
        """`joined`: texts stand one after the other in blocks, and what stands before a text in its block is read with it; `apart`: each
        text is read by itself."""
        block_size: Annotated[int, Field(ge=2, le=MOST_TOKENS)] | None = None
        """Tokens of a block; unset: `data.max_length`, else what the model can hold, but at most 2048."""
        document_separator: Literal["eos", "none"] = "eos"
        """What stands behind each text: the tokenizer's end token, or nothing. What the tokenizer puts before a text (BOS) stays."""

    config: Config
    takes = (Text,)
    usual = True
    encoded_by = ("document_separator",)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.pieces = Pieces(config.block_size, joined=config.documents == "joined")

    def encode(self, example: Example, index: int, renderer: Renderer) -> list[Sample]:
        assert isinstance(example, Text)
        sample = renderer.encode_text(example, index)
        if self.config.document_separator == "none":
            targets = sample.targets[:-1].copy()
            targets[-1:] = NO_TARGET
            sample = replace(sample, input_ids=sample.input_ids[:-1], targets=targets)
        return [sample]

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        """What a block loses is recorded by no row: it may be of many."""
        return replace(super().loss(policy, batch), documents=None)
