"""How an adapter begins, where that is not peft's zero: from the model's own weights, or from what quantization lost.

PiSSA (Meng et al., 2024, arXiv:2404.02948) and OLoRA (Büyükakyüz, 2024, arXiv:2406.01775) begin at the main parts of a
weight W and train W - s B0 A0 + s B A. peft writes W - s B0 A0 into the base. Here the base keeps its bits: the layer
computes W x + s (B A - B0 A0) x, the same function, which is W x exactly where B A = B0 A0. So the adapter switched off is
the policy at step 0, and the saved adapter, of rank 2 r, belongs to the untouched base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from peft.utils import ModulesToSaveWrapper
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open
from torch import nn

from luthier.errors import UserError

ADAPTER = "default"


class FromStart(LoraVariant):  # type: ignore[misc]
    """W x + s (B A - B0 A0) drop(x), with A0 [R, in] and B0 [out, R] as they were at step 0."""

    def __init__(self, layer: Any) -> None:
        self.a = layer.lora_A[ADAPTER].weight.detach().clone()
        self.b = layer.lora_B[ADAPTER].weight.detach().clone()

    def forward(
        self, module: Any, *, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        a, b, linear = module.lora_A[active_adapter], module.lora_B[active_adapter], nn.functional.linear
        x = module.lora_dropout[active_adapter](x)
        moved: torch.Tensor = b(a(x)) - linear(linear(x, self.a), self.b)
        scaling: float = module.scaling[active_adapter]
        return result + moved * scaling


def lora_layers(adapted: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names in the base model, and the layers of peft."""
    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer):
            yield name.removeprefix("base_model.model."), module


def tie_edges(adapted: Any) -> None:
    """Copies of embeddings and head that are trained share their weight where the base's do; peft sees to it under some
    names only."""
    core = adapted.get_base_model()
    given, head = core.get_input_embeddings(), core.get_output_embeddings()
    if all(isinstance(edge, ModulesToSaveWrapper) for edge in (given, head)) and (
        head.original_module.weight is given.original_module.weight
    ):
        head.modules_to_save[ADAPTER].weight = given.modules_to_save[ADAPTER].weight


def begin_at_main_parts(adapted: nn.Module, how: str) -> None:
    """`pissa`, `pissa_niter_N` or `olora`, and the base as it was.

    Raises:
        UserError: a layer is quantized, or holds its weight transposed where `how` cannot take it.
    """
    for name, layer in lora_layers(adapted):
        base = layer.get_base_layer()
        if base.weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise UserError(
                "tuning.init_lora_weights",
                f"{how} of {name}, which is quantized",
                "weights in 16 or 32 bits",
                "init_lora_weights=loftq (of nf4), or leave model.quantization out",
            )
        if how == "olora" and layer.fan_in_fan_out:
            raise UserError(
                "tuning.init_lora_weights",
                f"olora of {name}, which holds its weight transposed",
                "another beginning",
                "init_lora_weights=pissa",
            )
        kept = base.weight.data.clone()
        if how == "olora":
            layer.olora_init(ADAPTER)
        else:
            layer.pissa_init(ADAPTER, how)
        base.weight.data = kept
        for part in (layer.lora_A, layer.lora_B):
            part[ADAPTER].weight.data = part[ADAPTER].weight.data.float().contiguous()
        layer.lora_variant[ADAPTER] = FromStart(layer)


def begin_at_what_was_lost(adapted: Any) -> None:
    """LoftQ (Li et al., 2023, arXiv:2310.08659), one step: s B A is the best product for W - dequantized W.

    Raises:
        UserError: the base is not held in 4 bits, or its files have other names than the model.
    """
    weights = _stored(Path(adapted.get_base_model().name_or_path))
    for name, layer in lora_layers(adapted):
        base = layer.get_base_layer()
        key = f"{name}.weight"
        if type(base).__name__ != "Linear4bit" or key not in weights:
            what = "is not held in 4 bits" if type(base).__name__ != "Linear4bit" else "has another name in the files"
            raise UserError(
                "tuning.init_lora_weights",
                f"loftq of {name}, which {what}",
                "a base in nf4 or fp4, from safetensors with the model's own names",
                "model.quantization=nf4, or init_lora_weights=true",
            )
        with safe_open(weights[key], framework="pt") as file:
            stored = file.get_tensor(key).to(base.weight.device, torch.float32)
        lost = stored - dequantize_module_weight(base).float()
        left, values, right = torch.linalg.svd(lost, full_matrices=False)
        r = layer.r[ADAPTER]
        roots = (values[:r] / layer.scaling[ADAPTER]).sqrt()
        layer.lora_A[ADAPTER].weight.data = (roots[:, None] * right[:r]).contiguous()
        layer.lora_B[ADAPTER].weight.data = (left[:, :r] * roots).contiguous()


@torch.no_grad()
def begin_at_inputs(adapted: Any, rows: Sequence[torch.Tensor]) -> None:
    """EVA (Paischer et al., 2024, arXiv:2410.07170) with the same rank everywhere: A is the main directions of a layer's
    inputs [T, in] over `rows` of ids [T]; B stays zero. Directions beyond those that the rows have stay as they were.

    Of each layer a sketch of at most 4 R directions is kept, so memory does not grow with the rows.
    """
    sketches = dict[str, torch.Tensor]()
    layers = dict(lora_layers(adapted))

    def look(name: str, inputs: torch.Tensor, keep: int) -> None:
        seen = inputs.reshape(-1, inputs.shape[-1]).double()
        sketches[name] = _main_directions(torch.cat([sketches[name], seen]) if name in sketches else seen, keep)

    hooks = [
        layer.register_forward_pre_hook(
            lambda _layer, inputs, name=name, keep=4 * layer.r[ADAPTER]: look(name, inputs[0], keep)
        )
        for name, layer in layers.items()
    ]
    try:
        with adapted.disable_adapter():
            for row in rows:
                adapted(input_ids=row[None].to(adapted.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    for name, found in sketches.items():
        weight = layers[name].lora_A[ADAPTER].weight
        count = min(len(weight), len(found))
        weight.data[:count] = nn.functional.normalize(found[:count]).to(weight.dtype)


def _main_directions(rows: torch.Tensor, keep: int) -> torch.Tensor:
    """[n, D] -> [k, D], k <= keep: its right singular vectors times their singular values, the largest first."""
    squares, left = torch.linalg.eigh(rows @ rows.T)
    count = min(keep, int((squares > squares[-1] * 1e-12).sum()))
    found: torch.Tensor = left[:, -count:].flip(1).T @ rows
    return found


def _stored(folder: Path) -> dict[str, Path]:
    """Tensor -> the file that holds it."""
    found = dict[str, Path]()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found
