"""What is borrowed: names inside the libraries that are not public, or whose meaning changed between versions.

Each has a probe, which tries what we rely on and fails with a sentence that says what would have to change. The scan finds
what is borrowed in the source, so that nothing is borrowed without a probe. `make newest` runs them against the newest releases.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.tiny_models import save_twin, twin

SOURCE = Path(__file__).parent.parent / "src" / "luthier"
LIBRARIES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "gguf",
    "huggingface_hub",
    "peft",
    "torch",
    "transformers",
    "typer",
)

PUBLIC = {
    "datasets.exceptions",
    "huggingface_hub.errors",
    "torch.nn",
    "torch.utils.checkpoint",
    "transformers.generation",
    "transformers.utils",
}
"""Modules below a library's top whose names its documentation gives as its own."""

Probe = Callable[[], bool]
PROBES: dict[str, tuple[Probe, str]] = {}
"""Name -> what tries it, and the sentence where that fails."""


def probe(name: str, sentence: str) -> Callable[[Probe], Probe]:
    def keep(tries: Probe) -> Probe:
        PROBES[name] = (tries, sentence)
        return tries

    return keep


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


# transformers


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


@probe("transformers.optimization.Adafactor", "Adafactor takes a fixed rate with relative_step=False (optimizers)")
def _() -> bool:
    from transformers.optimization import Adafactor

    return {"scale_parameter", "relative_step", "warmup_init"} <= set(parameters(Adafactor))


# peft


@probe("peft.tuners.lora.LoraLayer", "LoRA's layers hold lora_A, lora_B, scaling and lora_dropout by adapter (tuning/)")
def _() -> bool:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    adapted = get_peft_model(twin("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    layer: Any = next(module for module in adapted.modules() if isinstance(module, LoraLayer))
    return all("default" in getattr(layer, name) for name in ("lora_A", "lora_B", "scaling", "lora_dropout"))


@probe("peft.tuners.lora.layer.LoraVariant", "a variant of LoRA computes a layer's forward pass (tuning/)")
def _() -> bool:
    from peft.tuners.lora.layer import LoraVariant

    return {"active_adapter", "x", "result"} <= set(parameters(LoraVariant.forward))


@probe("peft.utils.ModulesToSaveWrapper", "modules trained whole are held in modules_to_save beside original_module")
def _() -> bool:
    from peft import LoraConfig, get_peft_model
    from peft.utils import ModulesToSaveWrapper

    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    head = get_peft_model(twin("llama"), config).get_base_model().get_output_embeddings()
    return (
        isinstance(head, ModulesToSaveWrapper)
        and "default" in head.modules_to_save
        and hasattr(head, "original_module")
    )


@probe(
    "peft.utils.integrations.dequantize_module_weight", "a layer's weight is unpacked from 4 or 8 bits by this function"
)
def _() -> bool:
    from peft.utils.integrations import dequantize_module_weight

    layer = torch.nn.Linear(4, 4)
    return bool((dequantize_module_weight(layer) == layer.weight).all())


@probe(
    "peft.utils.transformers_weight_conversion.convert_peft_config_for_transformers",
    "whether peft would take a target's name for experts is tried with this function (tuning/_targets.py)",
)
def _() -> bool:
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    return {"model", "conversions"} <= set(parameters(convert_peft_config_for_transformers))


@probe(
    "peft.tuners.tuners_utils.BaseTunerLayer",
    "a layer with an adapter merges itself by merge() (export/_one_by_one.py)",
)
def _() -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return hasattr(BaseTunerLayer, "merge") and hasattr(BaseTunerLayer, "get_base_layer")


@probe("peft.utils.other.ModulesToSaveWrapper", "the same class as in peft.utils (export/_one_by_one.py)")
def _() -> bool:
    from peft.utils import ModulesToSaveWrapper
    from peft.utils.other import ModulesToSaveWrapper as same

    return same is ModulesToSaveWrapper


@probe(
    "peft.utils.other.AuxiliaryTrainingWrapper",
    "modules and rows that are trained whole are wrapped by subclasses of this one (export/_one_by_one.py)",
)
def _() -> bool:
    from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

    return issubclass(ModulesToSaveWrapper, AuxiliaryTrainingWrapper)


# torch


@probe(
    "torch.nn.attention.varlen.varlen_attn",
    "attention over documents takes cu_seq, max and scale; causality by is_causal or by window_size (kernels/attention.py)",
)
def _() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    names = parameters(varlen_attn)
    return names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"] and bool(
        {"is_causal", "window_size"} & set(names)
    )


@probe("_foreach_mul_", "torch._foreach_mul_ scales a list of tensors in place (engines/_replicas.py)")
def _() -> bool:
    values = [torch.ones(2), torch.ones(3)]
    torch._foreach_mul_(values, 0.5)
    return all(bool((value == 0.5).all()) for value in values)


# bitsandbytes


@probe(
    "bitsandbytes.autograd._functions.MatmulLtState",
    "a layer of 8 bits asks its state whether it is trained, by `is_training` (models/patches/bitsandbytes_on_cpu.py)",
)
def _() -> bool:
    from bitsandbytes.autograd._functions import MatmulLtState

    return hasattr(MatmulLtState, "is_training")


# accelerate, hub, typer


@probe(
    "_shared_state",
    "accelerate's trackers find the state of the processes in PartialState._shared_state (runs/trackers.py)",
)
def _() -> bool:
    from accelerate.state import PartialState

    return isinstance(PartialState._shared_state, dict)


@probe("accelerate.state.PartialState", "accelerate's state of the processes (runs/trackers.py)")
def _() -> bool:
    from accelerate.state import PartialState

    return hasattr(PartialState, "_shared_state")


@probe("accelerate.state.DistributedType", "accelerate's word for one process is DistributedType.NO (runs/trackers.py)")
def _() -> bool:
    from accelerate.state import DistributedType

    return hasattr(DistributedType, "NO")


@probe("accelerate.tracking.LOGGER_TYPE_TO_CLASS", "accelerate's trackers by their names (runs/trackers.py)")
def _() -> bool:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    return {"tensorboard", "wandb", "mlflow", "trackio"} <= {str(name) for name in LOGGER_TYPE_TO_CLASS}


@probe("huggingface_hub.hf_api.ModelInfo", "what a hub says of a model has sha and siblings (models/sources/hub.py)")
def _() -> bool:
    from huggingface_hub.hf_api import ModelInfo

    return {"sha", "siblings"} <= ModelInfo.__dataclass_fields__.keys()


@probe(
    "huggingface_hub.hf_api.RepoSibling",
    "what a hub says of a file has rfilename, size and lfs (models/sources/hub.py)",
)
def _() -> bool:
    from huggingface_hub.hf_api import RepoSibling

    return {"rfilename", "size", "lfs"} <= RepoSibling.__dataclass_fields__.keys()


@probe("typer.core.TyperCommand", "a command of the command line writes its help by this class (cli/__init__.py)")
def _() -> bool:
    from typer.core import TyperCommand

    return hasattr(TyperCommand, "format_help")


@probe("typer.core.TyperGroup", "a group of commands finds them by list_commands and get_command (cli/__init__.py)")
def _() -> bool:
    from typer.core import TyperGroup

    return hasattr(TyperGroup, "list_commands") and hasattr(TyperGroup, "get_command")


def borrowed() -> dict[str, str]:
    """Name -> a place: what the source imports from modules that are not public, and what it reads that begins with `_` and is
    not its own."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    own = {node.name for _, node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {node.attr for _, node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.id for _, node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own -= {"_attn_implementation", "_tied_weights_keys", "_can_record_outputs", "_weight_conversions"}
    found: dict[str, str] = {}
    for path, node in nodes:
        place = path.relative_to(SOURCE).as_posix()
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            module = node.module or ""
            if "." in module and module not in PUBLIC:
                found |= {f"{module}.{alias.name}": place for alias in node.names}
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            mine = ast.unparse(node.value) in ("self", "cls", "os", "super()")
            if node.attr not in own and (not mine or node.attr == "_attn_implementation"):
                found[node.attr] = place
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if isinstance(name, str) and name.startswith("_") and not name.startswith("__") and name not in own:
                found[name] = place
    return found


def test_everything_borrowed_has_a_probe() -> None:
    found = borrowed()
    assert {name: place for name, place in found.items() if name not in PROBES} == {}
    assert sorted(PROBES.keys() - found.keys()) == [], "these probes are of names that are not used any more"


@pytest.mark.parametrize("name", PROBES)
def test_what_is_borrowed_is_still_there(name: str) -> None:
    tries, sentence = PROBES[name]
    try:
        holds = tries()
    except (ImportError, AttributeError, TypeError, ValueError, KeyError, RuntimeError) as error:
        pytest.fail(f"{name}: {sentence}. {type(error).__name__}: {error}")
    assert holds, f"{name}: {sentence}"
