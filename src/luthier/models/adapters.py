"""Adapters on disk, in PEFT's file format, with the fingerprint of the base that they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from luthier.errors import UserError
from luthier.models._loaded import check_adapter_config

STARTS_AT_ZERO = (True, "gaussian")
"""PEFT's ways to begin that leave the base as it is; others (PiSSA, OLoRA, ...) change its weights."""

WEIGHTS, CONFIG, OURS = "adapter_model.safetensors", "adapter_config.json", "luthier.json"


def save_adapter(
    model: Any,
    folder: Path,
    base: Mapping[str, Any],
    starts_at_base: bool = True,
    system: str | None = None,
    plain: tuple[str, str | None] | None = None,
) -> None:
    """Writes a PEFT model's active adapter into an existing folder.

    Args:
        model: a PeftModel.
        base: what is known of the model underneath (`name`, `commit`, fingerprints); kept in luthier.json.
        starts_at_base: whether the adapter began as zero.
        system: the system text that all training conversations had.
        plain: `ModelSource.plain` of the base, for peft's own file; by default the name and commit in `base`.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in _adapter_weights(model).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config = model.peft_config[model.active_adapter].to_dict()
    name, revision = plain or (base["name"].removeprefix("hf:"), base.get("commit"))
    config |= {"inference_mode": True, "base_model_name_or_path": name, "revision": revision}
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_origin(folder, {"base": dict(base), "starts_at_base": starts_at_base, "system": system})


def write_origin(folder: Path, origin: Mapping[str, Any]) -> None:
    """Writes where a result comes from beside it, as luthier.json."""
    (folder / OURS).write_text(
        json.dumps(dict(origin), indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    found: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return found


def load_adapter(model: Any, folder: Path, trainable: bool = False, base: Mapping[str, Any] | None = None) -> Any:
    """`model` with the adapter of `folder` on it, in float32.

    Args:
        model: the base, as loaded.
        base: fingerprints of the base; where the adapter carries its own they must agree.

    Raises:
        UserError: pickled weights, missing or unexpected keys, wrong shapes, or another base.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    _refuse_other_base(folder, base)
    weights = _read_weights(folder)
    check_adapter_config(folder / CONFIG)
    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = not trainable
    config.base_model_name_or_path = getattr(
        model, "name_or_path", None
    )  # peft warns where the base lies elsewhere now
    try:
        adapted: PeftModel = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            str(folder),
            f"does not fit this model: {str(error).splitlines()[0][:160]}",
            "the model that it was trained on",
            f"use the base that {CONFIG} names",
        ) from None
    wanted = _adapter_weights(adapted)
    missing, unexpected = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or unexpected:
        raise UserError(
            str(folder / WEIGHTS),
            f"{len(missing)} keys are missing ({', '.join(missing[:2])}), {len(unexpected)} are unexpected "
            f"({', '.join(unexpected[:2])})",
            "an adapter for this model",
            "load it on the model that it was trained on",
        )
    wrong = [name for name, value in weights.items() if value.shape != wanted[name].shape]
    if wrong:
        raise UserError(
            str(folder / WEIGHTS),
            f"{wrong[0]} has the shape {list(weights[wrong[0]].shape)}",
            f"{list(wanted[wrong[0]].shape)}",
            f"r in {CONFIG} as it was trained, and the base that it was trained on",
        )
    broken = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise UserError(
            str(folder / WEIGHTS),
            f"{broken[0]} holds NaN or infinite numbers",
            "finite weights",
            "use an older checkpoint of the run",
        )
    parameters = dict(adapted.named_parameters())
    for name, parameter in parameters.items():
        if parameter.requires_grad or ".lora_" in name:
            parameter.data = parameter.data.float()
    with torch.no_grad():
        for name, tensor in _adapter_weights(adapted).items():
            tensor.copy_(weights[name])
    return adapted


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of an adapter, from safetensors; a pickle is refused."""
    if not (folder / WEIGHTS).is_file():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        raise UserError(
            str(folder),
            f"holds {', '.join(pickled)}, a pickle, which can run code when it is opened"
            if pickled
            else f"has no {WEIGHTS}",
            "an adapter in safetensors",
            "convert it where you trust it: peft's model.save_pretrained(folder, safe_serialization=True)",
        )
    try:
        return load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(
            str(folder / WEIGHTS), f"cannot be read: {error}", "a whole safetensors file", "copy the adapter again"
        ) from None


def _refuse_other_base(folder: Path, base: Mapping[str, Any] | None) -> None:
    file = folder / OURS
    if base is None or not file.is_file():
        return
    own = json.loads(file.read_text(encoding="utf-8"))["base"]
    differing = [
        key
        for key in ("config_hash", "weights_hash", "tokenizer_hash")
        if own.get(key) and base.get(key) and own[key] != base[key]
    ]
    if differing:
        raise UserError(
            str(folder),
            f"was trained on {own['name']}, this is {base['name']}; they differ in their {', '.join(differing)}",
            "the base that it was trained on",
            f"use {own['name']}",
        )


def starts_at_base(folder: Path) -> bool:
    """Whether the adapter began as zero, so that switching it off gives its base."""
    if (folder / OURS).is_file():
        return bool(_origin(folder).get("starts_at_base", True))
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return config.get("init_lora_weights", True) in STARTS_AT_ZERO


def origin_of(folder: Path, base: Mapping[str, Any]) -> dict[str, Any]:
    """What `luthier.json` says of a copy of a result of `base`: what it says of the result, as far as it says something."""
    return {"base": dict(base), "system": trained_system(folder), **_origin(folder)}


def trained_system(folder: Path) -> str | None:
    """The system text that all conversations of the training data had, for a result of luthier."""
    found = _origin(folder).get("system")
    return found if isinstance(found, str) else None


def _origin(folder: Path) -> dict[str, Any]:
    file = folder / OURS
    tree = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return tree if isinstance(tree, dict) else {}
