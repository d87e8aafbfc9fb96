"""What `luthier inspect` looks into: a model as a configuration holds and trains it, without its data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from luthier import component
from luthier.config import RunConfig
from luthier.errors import UserError
from luthier.inference.as_typed import config_of_model
from luthier.inference.opened import open_model
from luthier.inspecting.module_tree import Node, tree
from luthier.models.load import load_model
from luthier.models.precision import choose_dtype
from luthier.models.reading import add_tokens, load_tokenizer
from luthier.models.sources.resolve import resolve
from luthier.system.devices import device
from luthier.training.build import build_policy


def look(target: str, overrides: Sequence[str] = (), trust_remote_code: bool = False) -> Node:
    """The modules of a model, as loaded and with nothing trained; of a run or an adapter, with the adapter on.

    Args:
        target: as `model.path` of a configuration, or an adapter.
        overrides: keys of `model` (`quantization=nf4`), and of `tuning` to see what it would train.

    Raises:
        UserError, EnvironmentProblem: as training would.
    """
    checked, tuned = config_of_model(target, overrides)
    if resolve(target, checked.model.revision, trust_remote_code).adapter is not None:
        if overrides:
            raise UserError(target, "is an adapter, whose base is held as its run says", "no other keys", overrides[0])
        return tree(_core(open_model(target, trust_remote_code=trust_remote_code, takes="either").model))
    if tuned:
        return look_at(checked, trust_remote_code)
    where = device()
    held = checked.model.quantization
    model = load_model(
        resolve(target, checked.model.revision, trust_remote_code),
        dtype=choose_dtype(checked.model.dtype, where)[0],
        device=where,
        quantization=component.make("quantization", held) if held is not None else None,
        trust_remote_code=trust_remote_code,
    )
    return tree(model.requires_grad_(False))


def look_at(checked: RunConfig, trust_remote_code: bool = False) -> Node:
    """The modules of a configuration's model, quantized and tuned as it says."""
    where = device()
    dtype, _why = choose_dtype(checked.model.dtype, where)
    decisions = {"activation_checkpointing": False, "layout": "padded"}
    source = resolve(checked.model.path, checked.model.revision, trust_remote_code)
    tokenizer = load_tokenizer(source.folder, trust_remote_code=trust_remote_code)
    new = add_tokens(tokenizer, checked.data.add_tokens)
    # As if it went on: what it would begin with is not worked out, for no value is shown.
    policy, _tuned = build_policy(checked, source, dtype, where, decisions, trust_remote_code, new=new, restored=True)
    return tree(policy.core)


def _core(model: Any) -> nn.Module:
    core: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model
    return core
