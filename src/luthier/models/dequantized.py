"""Weights that are unpacked from four or eight bits: as plain layers, and proven to be what was packed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from luthier.errors import UserError

_ROWS = 8
"""Of the matrix that is packed and unpacked for the proof; bitsandbytes unpacks a single row in another way."""
_ROUNDING = 0.02
"""Of the largest value: what a dtype of 16 bits may round. Scales of other blocks are off by a third and more."""


def dequantize(model: Any, dtype: torch.dtype) -> Any:
    """The model with plain layers, of the kind that they were before they were quantized, in the place of the quantized.

    transformers' own `dequantize` makes a linear layer of each, also of those that hold their weight transposed.
    """
    import bitsandbytes
    from peft.utils.integrations import dequantize_module_weight
    from transformers.pytorch_utils import Conv1D

    library: Any = bitsandbytes.nn
    for path, module in list(model.named_modules()):
        if not isinstance(module, library.Linear4bit | library.Linear8bitLt):
            continue
        weight = dequantize_module_weight(module).detach().to(dtype)
        with torch.device("meta"):
            transposed = module.source_cls is Conv1D
            plain: Any = (
                Conv1D(module.out_features, module.in_features)
                if transposed
                else nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            )
        plain.weight = nn.Parameter(weight.T.contiguous() if transposed else weight, requires_grad=False)
        plain.bias = module.bias
        model.set_submodule(path, plain)
    model.hf_quantizer.remove_quantization_config(model)
    return model.to(dtype)


def refuse_unpacked_wrong(model: Any, name: str) -> None:
    """Layers of four bits that are unpacked to something else than what was packed.

    bitsandbytes 0.50.2 does so on processors with AVX-512, without a word: where rows are no whole number of blocks, it takes
    the scales of other blocks. So for each width of the model's layers a random matrix is packed and unpacked where the
    layers lie, and compared with what its codes and scales say.

    Raises:
        UserError: names the width, and the way that holds.
    """
    layers = {module.quant_state.shape[-1]: module for module in model.modules() if type(module).__name__ == "Linear4bit"}
    for width, layer in sorted(layers.items()):
        if not _unpacks_right(width, layer):
            raise UserError(
                f"{name}: model.quantization",
                f"on this processor bitsandbytes unpacks rows of {width:,} numbers of four bits wrongly: "
                f"they are no whole number of blocks of {layer.quant_state.blocksize}",
                "weights that are what was packed",
                "quantization=int8, or leave it out",
            )


def _unpacks_right(width: int, layer: Any) -> bool:
    import bitsandbytes

    library: Any = bitsandbytes.functional
    state = layer.quant_state
    drawn = torch.randn(_ROWS, width, generator=torch.Generator().manual_seed(0)).to(layer.weight.device, state.dtype)
    packed, held = library.quantize_4bit(drawn, blocksize=state.blocksize, quant_type=state.quant_type)
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).flatten()[: drawn.numel()].long()
    scales = held.absmax.float().repeat_interleave(state.blocksize)[: drawn.numel()]
    wanted = (held.code[codes] * scales).view(_ROWS, width)
    off = (library.dequantize_4bit(packed, held).float() - wanted).abs().max()
    return bool(off <= _ROUNDING * wanted.abs().max())
