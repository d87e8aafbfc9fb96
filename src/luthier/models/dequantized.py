"""A quantized model whose weights are unpacked: the values that it computes with, as plain weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


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
