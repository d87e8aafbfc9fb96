"""What is checked of a model when it is loaded: where its files and what became of them may differ without a word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from luthier.config.bounds import MOST_RANK
from luthier.errors import UserError, excerpt
from luthier.models.folder import tensors, weight_files
from luthier.models.settings import read_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

QUANTIZED = ("Linear4bit", "Linear8bitLt")
"""Classes of bitsandbytes, which is not imported to ask."""

FLOATING = ("F", "BF")
"""How safetensors' names of types with a point begin: F32, BF16, F8_E4M3."""


def refuse_misread(model: PreTrainedModel, folder: Path, name: str) -> None:
    """Weights whose files hold something else than the model has now.

    Raises:
        UserError: whole numbers where the model has floating ones (they would be cast), or a head of its own in a model
            whose config ties it to the embeddings.
    """
    stored = {tensor.name: tensor for tensor in tensors(folder, name)}
    if getattr(model.config, "quantization_config", None) is None:
        for key, weight in model.named_parameters():
            if weight.is_floating_point() and key in stored and not stored[key].dtype.startswith(FLOATING):
                raise UserError(
                    str(stored[key].file),
                    f"{key} is of type {stored[key].dtype}",
                    "a floating type: F32, BF16, F16",
                    "download the model again",
                )
    _refuse_untied(model, set(stored), name)


def stored_weights(folder: Path, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor of a folder's files, mapped, not copied."""
    from safetensors import safe_open

    for file in weight_files(folder, name):
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - it is no dict
                yield key, opened.get_tensor(key)


def quantized(model: nn.Module) -> tuple[int, float]:
    """How many layers bitsandbytes holds, and their share of the model's weights."""
    layers = [module for module in model.modules() if type(module).__name__ in QUANTIZED]
    held: list[Any] = [layer.weight for layer in layers]
    inside = sum(layer.in_features * layer.out_features for layer in cast("list[Any]", layers))
    packed = {id(weight) for weight in held}
    outside = sum(weight.numel() for weight in model.parameters() if id(weight) not in packed)
    return len(layers), inside / (inside + outside)


def refuse_unquantized(model: PreTrainedModel, name: str) -> None:
    """A model that bitsandbytes was to hold, of which it holds nothing.

    Raises:
        UserError: no layer is of a kind that it knows.
    """
    if not quantized(model)[0]:
        head = model.get_output_embeddings()
        linear = (module for module in model.modules() if isinstance(module, nn.Linear) and module is not head)
        kinds = sorted({type(module).__name__ for module in linear})
        raise UserError(
            name,
            f"none of its layers can be held in fewer bits: {', '.join(kinds) or 'they are not linear ones'}",
            "layers of the class nn.Linear beside the head",
            "leave model.quantization out",
        )


def _refuse_untied(model: PreTrainedModel, stored: set[str], name: str) -> None:
    """transformers keeps both where they differ, and ties them again as soon as somebody resizes or saves the model."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False) or head is None:
        return
    names = {id(weight): key for key, weight in model.named_parameters(remove_duplicate=False)}
    keys = [names.get(id(module.weight), "") for module in (head, embeddings)]
    tied_by_design = keys[0] in (getattr(model, "_tied_weights_keys", None) or ())
    if head.weight is not embeddings.weight and tied_by_design and stored.issuperset(keys):
        raise UserError(
            name,
            f"config.json says tie_word_embeddings, but {keys[0]} and {keys[1]} are there and differ",
            "a config that says what the files hold",
            'write "tie_word_embeddings": false into config.json, or download the model again',
        )


def check_adapter_config(file: Path) -> None:
    """Refuses what peft would fill with defaults of its own, or cannot be.

    Raises:
        UserError: another method than LoRA, or no `r`, `lora_alpha` or `target_modules`.
    """
    tree = read_json(file, str(file.parent))
    if (kind := tree.get("peft_type")) != "LORA":
        raise UserError(
            str(file), f"peft_type is {excerpt(kind)}", "LORA", "an adapter that was trained with LoRA or DoRA"
        )
    if isinstance(rank := tree.get("r"), bool) or not isinstance(rank, int | None) or not 1 <= (rank or 1) <= MOST_RANK:
        raise UserError(str(file), f"r is {excerpt(rank)}", f"a whole number, 1 to {MOST_RANK:,}", f"copy {file.name} again")
    if tree.get("megatron_config") is not None:
        raise UserError(
            str(file),
            f"megatron_config: peft would import {excerpt(tree.get('megatron_core'))}, whatever it is",
            "null",
            f"remove megatron_config from {file.name}",
        )
    for key in ("r", "lora_alpha", "target_modules"):
        if tree.get(key) is None and not (key == "target_modules" and tree.get("target_parameters")):
            raise UserError(
                str(file),
                f"has no {key}: peft would take a default of its own",
                f"the {key} that the adapter was trained with",
                f"copy {file.name} again, or write {key} into it",
            )
