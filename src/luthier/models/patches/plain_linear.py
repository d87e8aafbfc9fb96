"""Linear layers that are a class of their own and compute what `nn.Linear` does: bitsandbytes holds `nn.Linear` only.

While a model is built its module sees `nn.Linear` under the name of that class, so its layers can be held in fewer bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from torch import nn

_OWN = {"falcon": ("transformers.models.falcon.modeling_falcon", "FalconLinear")}
"""By the type of model: the module, and its class."""


@contextmanager
def plain_linear(model_type: str) -> Iterator[None]:
    """For the time in which a model of this type is built."""
    if model_type not in _OWN:
        yield
        return
    module, name = import_module(_OWN[model_type][0]), _OWN[model_type][1]
    own = getattr(module, name)
    setattr(module, name, nn.Linear)
    try:
        yield
    finally:
        setattr(module, name, own)
