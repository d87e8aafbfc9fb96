"""What is borrowed from inside transformers, with a probe each."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM

from tests.helpers.probes import parameters, probe
from tests.helpers.tiny_models import save_twin, twin


@probe(
    "transformers.modeling_outputs.BaseModelOutputWithPast",
    "the cache of an output is called `cache` or `past_key_values`: models/architectures/_parts.CACHE knows these two names",
)
def _() -> bool:
    from transformers.modeling_outputs import BaseModelOutputWithPast

    return bool({"cache", "past_key_values"} & BaseModelOutputWithPast.__dataclass_fields__.keys())


@probe(
    "transformers.modeling_outputs.CausalLMOutputWithPast",
    "a causal model's output holds loss and logits: models/architectures/_decoder makes one",
)
def _() -> bool:
    from transformers.modeling_outputs import CausalLMOutputWithPast

    return {"loss", "logits"} <= CausalLMOutputWithPast.__dataclass_fields__.keys()


@probe(
    "transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS",
    "attention functions are found by name in this register, which flat attention is entered into (kernels/attention.py)",
)
def _() -> bool:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return "sdpa" in ALL_ATTENTION_FUNCTIONS and hasattr(ALL_ATTENTION_FUNCTIONS, "register")


@probe(
    "transformers.modeling_utils.PreTrainedModel",
    "our own architectures answer `_can_set_attn_implementation` and `_init_weights` (models/architectures/_parts.py)",
)
def _() -> bool:
    from transformers.modeling_utils import PreTrainedModel

    return all(
        hasattr(PreTrainedModel, name) for name in ("_can_set_attn_implementation", "_init_weights", "post_init")
    )


@probe(
    "_attn_implementation",
    "the attention of a loaded model is switched by config._attn_implementation (models/flat.py)",
)
def _() -> bool:
    model = twin("llama")
    model.set_attn_implementation("eager")
    return bool(model.config._attn_implementation == "eager")


@probe(
    "_tied_weights_keys",
    "a model class says which weights are tied by design in `_tied_weights_keys` (models/checks.py)",
)
def _() -> bool:
    return "lm_head.weight" in (getattr(twin("llama"), "_tied_weights_keys", None) or ())


@probe(
    "_can_record_outputs",
    "a mixture declares its routers for `output_router_logits` in `_can_record_outputs` (policy/routers.py)",
)
def _() -> bool:
    from luthier.policy.routers import routers_of

    return len(routers_of(twin("qwen3_moe"))) > 0


@probe(
    "transformers.utils.output_capturing.OutputRecorder",
    "a declared router is an OutputRecorder with target_class, index and layer_name (policy/routers.py)",
)
def _() -> bool:
    from transformers.utils.output_capturing import OutputRecorder

    return {"target_class", "index", "layer_name"} <= set(parameters(OutputRecorder))


@probe(
    "transformers.modeling_layers.GradientCheckpointingLayer",
    "a layer's activation checkpointing is this base class's (models/architectures/_decoder.py)",
)
def _() -> bool:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return hasattr(GradientCheckpointingLayer, "gradient_checkpointing")


@probe(
    "transformers.cache_utils.Cache",
    "a cache has `layers`, `update(key, value, layer)` and `get_seq_length()` (models/architectures)",
)
def _() -> bool:
    from transformers.cache_utils import Cache, DynamicCache

    return parameters(Cache.update)[1:4] == ["key_states", "value_states", "layer_idx"] and DynamicCache().layers == []


@probe(
    "transformers.cache_utils.DynamicCache",
    "an empty DynamicCache grows its layers as they come (models/architectures)",
)
def _() -> bool:
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), 0)
    return bool(cache.get_seq_length() == 2)


@probe(
    "transformers.cache_utils.DynamicLayer",
    "a layer of a cache has reorder_cache, batch_repeat_interleave, batch_select_indices, reset and crop (yuan/model.py)",
)
def _() -> bool:
    from transformers.cache_utils import DynamicLayer

    names = ("reorder_cache", "batch_repeat_interleave", "batch_select_indices", "reset", "crop")
    return all(hasattr(DynamicLayer, name) for name in names)


@probe(
    "transformers.configuration_utils.PretrainedConfig",
    "a configuration class is PretrainedConfig (models/architectures)",
)
def _() -> bool:
    from transformers.configuration_utils import PretrainedConfig

    return hasattr(PretrainedConfig, "get_text_config")


@probe(
    "transformers.tokenization_python.PreTrainedTokenizer",
    "a tokenizer in Python has _tokenize and convert_tokens_to_string to be overridden (yuan/tokenizer.py)",
)
def _() -> bool:
    from transformers.tokenization_python import PreTrainedTokenizer

    return hasattr(PreTrainedTokenizer, "_tokenize") and hasattr(PreTrainedTokenizer, "convert_tokens_to_string")


@probe(
    "transformers.tokenization_utils_base.AddedToken", "an added token says whether it is special (yuan/tokenizer.py)"
)
def _() -> bool:
    from transformers.tokenization_utils_base import AddedToken

    return bool(AddedToken("<x>", special=True).special)


@probe("transformers.pytorch_utils.Conv1D", "GPT-2's transposed linear layer is this class (models/dequantized.py)")
def _() -> bool:
    from transformers.pytorch_utils import Conv1D

    return tuple(Conv1D(3, 5).weight.shape) == (5, 3)


@probe(
    "transformers.integrations.gguf.gguf_tokenizer_mapping",
    "transformers' table of pre-tokenizers of GGUF files (models/patches/gguf_pretokenizers.py)",
)
def _() -> bool:
    from transformers.integrations.gguf import gguf_tokenizer_mapping

    return "llama-bpe" in gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS


@probe(
    "transformers.core_model_loading.rename_source_key",
    "a stored name becomes the model's by rename_source_key(key, renamings, converters, prefix, names) (models/stored.py)",
)
def _() -> bool:
    from transformers.core_model_loading import rename_source_key

    key = "model.norm.weight"
    return bool(rename_source_key(key, [], [], "model", {key: True})[0] == key)


@probe(
    "transformers.core_model_loading.revert_weight_conversion",
    "a joined weight is taken apart again by revert_weight_conversion(model, weights) (models/stored.py)",
)
def _() -> bool:
    from transformers.core_model_loading import revert_weight_conversion

    return parameters(revert_weight_conversion)[:2] == ["model", "state_dict"]


@probe(
    "transformers.core_model_loading.WeightConverter",
    "a way to join weights has source_patterns, each known to the names it gives (models/stored.py)",
)
def _() -> bool:
    from transformers.core_model_loading import WeightConverter

    return "source_patterns" in parameters(WeightConverter.__init__)


@probe("transformers.core_model_loading.WeightRenaming", "a renaming of weights is a WeightRenaming (models/stored.py)")
def _() -> bool:
    from transformers.core_model_loading import WeightRenaming

    return "source_patterns" in parameters(WeightRenaming.__init__)


@probe("transformers.core_model_loading.dot_natural_key", "names are sorted with numbers as numbers (models/stored.py)")
def _() -> bool:
    from transformers.core_model_loading import dot_natural_key

    return sorted(["a.10.b", "a.9.b"], key=dot_natural_key) == ["a.9.b", "a.10.b"]


@probe(
    "_weight_conversions",
    "a loaded model remembers how its weights were joined, in `_weight_conversions` (models/stored.py)",
)
def _() -> bool:
    with TemporaryDirectory() as folder:
        save_twin(Path(folder), "qwen3_moe")
        return bool(getattr(AutoModelForCausalLM.from_pretrained(folder), "_weight_conversions", None))


@probe(
    "_experts_implementation",
    "which function computes a mixture's experts is config._experts_implementation (kernels/experts.py)",
)
def _() -> bool:
    model = twin("qwen3_moe")
    model.set_experts_implementation("eager")
    return bool(model.config._experts_implementation == "eager")


@probe(
    "transformers.integrations.moe.ALL_EXPERTS_FUNCTIONS",
    "functions that compute experts are found by name in this register, which ours is entered into (kernels/experts.py)",
)
def _() -> bool:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    return "grouped_mm" in ALL_EXPERTS_FUNCTIONS and hasattr(ALL_EXPERTS_FUNCTIONS, "register")


@probe("_apply_gate", "a module of experts joins gate and up by `_apply_gate` where it has a gate (kernels/experts.py)")
def _() -> bool:
    experts = [module for module in twin("qwen3_moe").modules() if hasattr(module, "has_gate")]
    return bool(experts) and all(hasattr(module, "_apply_gate") for module in experts)


@probe("transformers.optimization.Adafactor", "Adafactor takes a fixed rate with relative_step=False (optimizers)")
def _() -> bool:
    from transformers.optimization import Adafactor

    return {"scale_parameter", "relative_step", "warmup_init"} <= set(parameters(Adafactor))


@probe(
    "_model_mapping",
    "whether transformers has a class with a head for an architecture is asked of `_model_mapping` (models/score_head.py)",
)
def _() -> bool:
    from transformers import AutoModelForSequenceClassification, LlamaConfig, MambaConfig

    known = AutoModelForSequenceClassification._model_mapping
    return LlamaConfig in known and MambaConfig not in known
