"""What is borrowed from inside peft, torch, bitsandbytes, accelerate, the hub's client, typer and Python, with a probe each."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from tests.helpers.probes import parameters, probe
from tests.helpers.tiny_models import twin

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


@probe(
    "peft.tuners.lora.layer.ParamWrapper",
    "LoRA on a tensor of experts is a ParamWrapper that switches itself on by _activate_lora (kernels/experts_lora.py)",
)
def _() -> bool:
    from peft.tuners.lora.layer import ParamWrapper

    return "active_adapters" in parameters(ParamWrapper._activate_lora) and hasattr(ParamWrapper, "get_param")


@probe(
    "peft.tuners.trainable_tokens.TrainableTokensLayer",
    "rows of embeddings that are trained alone are held in trainable_tokens_delta (tuning/lora.py)",
)
def _() -> bool:
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    return "trainable_tokens_delta" in TrainableTokensLayer.adapter_layer_names


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


@probe(
    "huggingface_hub.utils.tqdm.tqdm", "a download tells a bar of its own, made of this one (data/readers/hub_data.py)"
)
def _() -> bool:
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import tqdm

    return "tqdm_class" in parameters(HfApi.hf_hub_download) and {"update", "close"} <= set(dir(tqdm))


@probe("typer.core.TyperCommand", "a command of the command line writes its help by this class (cli/__init__.py)")
def _() -> bool:
    from typer.core import TyperCommand

    return hasattr(TyperCommand, "format_help")


@probe("typer.core.TyperGroup", "a group of commands finds them by list_commands and get_command (cli/__init__.py)")
def _() -> bool:
    from typer.core import TyperGroup

    return hasattr(TyperGroup, "list_commands") and hasattr(TyperGroup, "get_command")


# Python


@probe(
    "_result_queue",
    "what workers send a pool comes by its `_result_queue`, of which `_reader` is an end (data/dataset/workers.py)",
)
def _() -> bool:
    with _idle_pool() as pool:
        queue: Any = pool._result_queue
        queue.put("sent")
        return bool(queue._reader.recv() == "sent")


@probe(
    "_writer",
    "where this process has closed `_writer` too, nobody waits for the rest of a message (data/dataset/workers.py)",
)
def _() -> bool:
    with _idle_pool() as pool:
        queue: Any = pool._result_queue
        queue._writer.close()
        try:
            queue._reader.recv()
        except EOFError:
            return True
    return False


def _idle_pool() -> ProcessPoolExecutor:
    """Whose workers would be started by the first work."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("fork"))
