"""The configuration of Baichuan2, with the keys of the published config.json."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PretrainedConfig

__all__ = ["BaichuanConfig"]

PLAIN_HEAD_VOCABULARY = 64000
"""Of Baichuan 1, which shares the architecture's name and has an ordinary head."""


class BaichuanConfig(PretrainedConfig):  # type: ignore[misc]
    """Defaults are those of 13B; what tells 7B from it is that it has `max_position_embeddings`."""

    model_type = "baichuan"
    keys_to_ignore_at_inference = ("cache", "past_key_values")

    vocab_size: int = 125696
    hidden_size: int = 5120
    intermediate_size: int = 13696
    num_hidden_layers: int = 40
    num_attention_heads: int = 40
    hidden_act: str = "silu"
    max_position_embeddings: int | None = None
    """Given: rotary positions, as in 7B. Absent: ALiBi, as in 13B."""
    model_max_length: int = 4096
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    gradient_checkpointing: bool | list[bool] = False
    """Of the published 13B file; changes nothing: checkpointing is asked for by `gradient_checkpointing_enable`."""
    z_loss_weight: float | int = 0.0
    """Weight of the mean squared largest logit in the model's own loss."""
    norm_head: bool | None = None
    """Whether the rows of the head have length 1. Absent: so in Baichuan2, not in Baichuan 1 (by its vocabulary)."""
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **others: Any) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads")
        if self.hidden_act != "silu":
            raise ValueError(f"hidden_act {self.hidden_act!r}: this model is defined with silu")
        if self.norm_head is None:
            self.norm_head = self.vocab_size != PLAIN_HEAD_VOCABULARY
        others.pop("auto_map", None)  # code of the published folder, which is neither needed nor saved
        super().__post_init__(**others)

    @property
    def uses_alibi(self) -> bool:
        return self.max_position_embeddings is None

    @property
    def head_dim(self) -> int:
        """Size of an attention head."""
        return self.hidden_size // self.num_attention_heads
