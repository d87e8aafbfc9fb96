"""The configuration of Yuan2.0, with the keys of the published config.json."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PretrainedConfig

__all__ = ["YuanConfig"]


class YuanConfig(PretrainedConfig):  # type: ignore[misc]
    """Defaults are those of the published 2B models. `dropout` changes nothing, there as here."""

    model_type = "yuan"
    keys_to_ignore_at_inference = ("cache", "past_key_values")

    vocab_size: int = 135040
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    hidden_act: str = "silu"
    max_position_embeddings: int = 8192
    model_max_length: int = 8192
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    dropout: float | int = 0.1
    use_cache: bool = True
    tie_word_embeddings: bool = True
    causal_mask: bool = True
    use_flash_attention: bool = True
    """Attention is plainly causal: `reset_attention_mask` has no effect."""
    reset_attention_mask: bool = True
    """A token behind an `eod_token` does not attend to anything up to it. Holds in training, and in eval mode where
    `reset_position_ids` is true. The filter of queries and keys still looks across."""
    reset_position_ids: bool = True
    """Positions themselves are not reset, as in the published code."""
    use_loss_mask: bool = False
    """The model's own loss leaves out requests: it counts from `sep_token` to `eod_token`."""
    use_shareqk: bool = False
    """One projection, scaled and shifted, serves as query and key, without the filter."""
    eod_token: int = 77185
    sep_token: int = 77187
    eod_token_id: int | None = 77185
    sep_token_id: int | None = 77185
    mask_token_id: int | None = 77185
    pad_token_id: int | None = 77185
    bos_token_id: int | None = 77185
    eos_token_id: int | list[int] | None = 77185

    def __post_init__(self, **others: Any) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads")
        if not self.causal_mask:
            raise ValueError("causal_mask false: this model is defined for causal attention only")
        if self.hidden_act != "silu":
            raise ValueError(f"hidden_act {self.hidden_act!r}: this model is defined with silu")
        others.pop("auto_map", None)  # code of the published folder, which is neither needed nor saved
        super().__post_init__(**others)

    @property
    def head_dim(self) -> int:
        """Size of an attention head."""
        return self.hidden_size // self.num_attention_heads
