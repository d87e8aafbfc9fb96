"""Adapters on disk, in PEFT's file format, with the fingerprint of the base that they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from luthier.errors import UserError, excerpt
from luthier.kernels.experts_lora import compute_apart
from luthier.kernels.lora import ADAPTER, FromStart, lora_layers, tie_edges
from luthier.models.adapter_readme import write_readme
from luthier.models.checks import check_adapter_config
from luthier.models.files import refuse_odd_links
from luthier.models.headers import file_tensors
from luthier.models.new_tokens import grow, grown
from luthier.models.settings import read_json
from luthier.system.faults import raise_fault
from luthier.system.files import sha256

STARTS_AT_ZERO = (True, "gaussian", "eva", "orthogonal")
"""PEFT's ways to begin that leave the base as it is; others (PiSSA, OLoRA, ...) change its weights."""

WEIGHTS, CONFIG, OURS = "adapter_model.safetensors", "adapter_config.json", "luthier.json"
FROM_ADAPTER = "from_adapter"

UNFIT = (
    ValueError, TypeError, KeyError, AttributeError, IndexError, NotImplementedError, RuntimeError, OverflowError, ImportError
)  # fmt: skip
"""What peft raises of settings whose values it does not check."""


def save_adapter(
    model: Any,
    folder: Path,
    base: Mapping[str, Any],
    starts_at_base: bool = True,
    system: str | None = None,
    plain: tuple[str, str | None] | None = None,
    new_tokens: Mapping[str, int] | None = None,
    adapter_path: str | None = None,
) -> None:
    """Writes a PEFT model's active adapter into an existing folder.

    Args:
        model: a PeftModel.
        base: what is known of the model underneath (`name`, `commit`, fingerprints, `quantization`); kept in luthier.json.
        starts_at_base: whether the adapter began as zero, to rounding.
        system: the system text that all training conversations had.
        plain: `ModelSource.plain` of the base, for peft's own file; by default the name and commit in `base`.
        new_tokens: tokens that the base did not have, and their ids.
        adapter_path: the adapter that this one went on from.
    """
    weights, config = _on_the_base(model)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    name, revision = plain or (base["name"].removeprefix("hf:"), base.get("commit"))
    config |= {"inference_mode": True, "base_model_name_or_path": name, "revision": revision}
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    begins = model.peft_config[model.active_adapter].init_lora_weights
    rows = model.get_base_model().get_input_embeddings().weight.shape[0]
    origin = {"base": dict(base), "starts_at_base": starts_at_base, "begins": begins, "system": system}
    tokens = {"embedding_rows": rows, "new_tokens": dict(new_tokens or {})}
    origin |= tokens | {"adapter_path": adapter_path}
    write_origin(folder, origin)
    write_readme(folder, (name, revision), origin)


def _on_the_base(model: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and peft's configuration of an adapter that plain peft loads on the base as it is.

    One that is trained from a start other than zero (`FromStart`) becomes one of twice the rank, [A; A0] and [B, -B0].
    """
    weights = adapter_weights(model)
    config = model.peft_config[model.active_adapter].to_dict()
    moved = {
        name: layer for name, layer in lora_layers(model) if isinstance(layer.lora_variant.get(ADAPTER), FromStart)
    }
    for name, layer in moved.items():
        for part, own, axis in (("lora_A", layer.start_A, 0), ("lora_B", -layer.start_B, 1)):
            key = f"base_model.model.{name}.{part}.weight"
            weights[key] = torch.cat([weights[key], own.cpu()], axis).contiguous()
    if moved:
        config |= {"r": 2 * config["r"], "rank_pattern": {k: 2 * r for k, r in config["rank_pattern"].items()}}
        # s = lora_alpha / r stays; with rsLoRA s = lora_alpha / sqrt(r) does.
        more = 2**0.5 if config["use_rslora"] else 2
        config |= {
            "lora_alpha": more * config["lora_alpha"],
            "alpha_pattern": {k: more * alpha for k, alpha in config["alpha_pattern"].items()},
        }
    config["init_lora_weights"] = config["init_lora_weights"] in STARTS_AT_ZERO or bool(moved)
    return weights, config


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """As they are on a model, under the names that peft writes; a shared weight stands under each of its names."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in _adapter_weights(model).items()}
    seen = set[int]()
    for name, tensor in weights.items():
        if tensor.data_ptr() in seen:
            weights[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return weights


def adapter_folder(path: str) -> Path:
    """Where the adapter of RUN or ADAPTER lies.

    Raises:
        UserError: there is none.
    """
    for folder in (Path(path) / "adapter", Path(path)):
        if (folder / CONFIG).is_file():
            return folder
    found = f"{path} holds no {CONFIG}" if Path(path).is_dir() else f"there is no folder {path}"
    raise UserError("tuning.adapter_path", found, "a run that made an adapter, or an adapter's folder")


def adapter_hash(folder: Path) -> str:
    """What tells an adapter from another: of its weights and peft's configuration."""
    digest = hashlib.blake2b(digest_size=16)
    for name in (CONFIG, WEIGHTS):
        digest.update(bytes.fromhex(sha256(folder / name)))
    return digest.hexdigest()


def write_origin(folder: Path, origin: Mapping[str, Any]) -> None:
    """Writes where a result comes from beside it, as luthier.json."""
    (folder / OURS).write_text(
        json.dumps(dict(origin), indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _adapter_weights(model: Any) -> dict[str, torch.Tensor]:
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
    _refuse_other_base(folder, base)
    weights = _read_weights(folder)
    check_adapter_config(folder / CONFIG)
    grow(model, embedding_rows(folder))
    config = _settings(folder)
    if trainable:
        _refuse_another_beginning(folder, config.init_lora_weights)
    config.inference_mode = not trainable
    config.base_model_name_or_path = getattr(
        model, "name_or_path", None
    )  # peft warns where the base lies elsewhere now
    try:
        adapted: PeftModel = get_peft_model(model, config)
    except UNFIT as error:
        raise UserError(
            str(folder),
            f"does not fit this model: {excerpt(str(error), 160)}",
            "the model that it was trained on",
            f"use the base that {CONFIG} names",
        ) from None
    weights = _fitting(weights, _adapter_weights(adapted), folder)
    parameters = dict(adapted.named_parameters())
    for name, parameter in parameters.items():
        if parameter.requires_grad or ".lora_" in name or "trainable_tokens" in name:
            parameter.data = parameter.data.float()
    with torch.no_grad():
        for name, tensor in _adapter_weights(adapted).items():
            tensor.copy_(weights[name])
    tie_edges(adapted)
    compute_apart(adapted)
    if (began := begins(folder)) is not None:
        config.init_lora_weights = began  # peft's own file cannot say it
    return adapted


def _settings(folder: Path) -> LoraConfig:
    try:
        config: LoraConfig = LoraConfig.from_pretrained(str(folder))
    except UNFIT as error:
        raise UserError(
            str(folder / CONFIG), f"peft cannot read it: {excerpt(str(error), 160)}", "what peft wrote", "copy it again"
        ) from None
    return config


def _fitting(
    weights: dict[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], folder: Path
) -> dict[str, torch.Tensor]:
    """The weights of an adapter's file, if they are those that it has on this model, with rows for tokens that are new to it.

    Raises:
        UserError: missing or unexpected keys, wrong shapes, or numbers that are not finite.
    """
    missing, unexpected = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or unexpected:
        raise UserError(
            str(folder / WEIGHTS),
            f"{len(missing)} keys are missing ({', '.join(missing[:2])}), {len(unexpected)} are unexpected "
            f"({', '.join(unexpected[:2])})",
            "an adapter for this model",
            "load it on the model that it was trained on",
        )
    weights = {
        name: _with_new_rows(value, wanted[name].shape, embedding_rows(folder)) for name, value in weights.items()
    }
    wrong = [name for name, value in weights.items() if value.shape != wanted[name].shape]
    if wrong:
        raise UserError(
            str(folder / WEIGHTS),
            f"{wrong[0]} has the shape {list(weights[wrong[0]].shape)}",
            f"{list(wanted[wrong[0]].shape)}",
            f"r in {CONFIG} as it was trained, and the base that it was trained on"
            if ".lora_" in wrong[0]
            else "the base that it was trained on, with the data.add_tokens of then",
        )
    broken = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise UserError(
            str(folder / WEIGHTS),
            f"{broken[0]} holds NaN or infinite numbers",
            "finite weights",
            "use an older checkpoint of the run",
        )
    return weights


def _with_new_rows(value: torch.Tensor, wanted: torch.Size, rows: int) -> torch.Tensor:
    """What an adapter has for each row of the embeddings or of the head, also for rows that are new since: its mean.

    Args:
        rows: of the embeddings, when the adapter was trained.
    """
    if value.ndim != len(wanted):
        return value
    other = [axis for axis, (then, now) in enumerate(zip(value.shape, wanted, strict=True)) if then != now]
    if len(other) != 1 or not value.shape[other[0]] == rows < wanted[other[0]]:
        return value
    return grown(value.transpose(0, other[0]), wanted[other[0]]).transpose(0, other[0])


def _refuse_another_beginning(folder: Path, how: Any) -> None:
    """Raises UserError where peft would change the base for an adapter that is gone on from."""
    if how not in (*STARTS_AT_ZERO, False):
        raise UserError(
            f"tuning.adapter_path: {folder / CONFIG}",
            f"it began with init_lora_weights: {how}, for which peft changes the base",
            "an adapter of the base as it is",
            "save it again by peft with path_initial_model_for_weight_conversion",
        )


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
    refuse_odd_links(folder)
    file_tensors(folder / WEIGHTS, str(folder))
    try:
        return load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise_fault(folder / WEIGHTS, error)
        raise UserError(
            str(folder / WEIGHTS), f"cannot be read: {error}", "a whole safetensors file", "copy the adapter again"
        ) from None


def _refuse_other_base(folder: Path, base: Mapping[str, Any] | None) -> None:
    own = _origin(folder).get("base")
    if base is None or own is None:
        return
    differing = [
        key
        for key in ("config_hash", "weights_hash", "tokenizer_hash", "template")
        if own.get(key) and base.get(key) and own[key] != base[key]
    ]
    if "quantization" in own and "quantization" in base and own["quantization"] != base["quantization"]:
        differing.append("quantization")
    if differing:
        raise UserError(
            str(folder),
            f"was trained on {own['name']}{_held(own)}, this is {base['name']}{_held(base)}; they differ in their "
            + ", ".join(differing),
            "the base that it was trained on",
            "data.chat_template, on_system and enable_thinking as in the config.yaml of that run"
            if differing == ["template"]
            else f"use {own['name']}{_held(own)}",
        )


def _held(base: Mapping[str, Any]) -> str:
    """` held in nf4`, or nothing of a base that is not quantized."""
    return f" held in {base['quantization']['kind']}" if base.get("quantization") else ""


def trained_quantization(folder: Path) -> dict[str, Any] | None:
    """How the base was held when the adapter was trained: the keys of `model.quantization`; None: in 16 or 32 bits."""
    found = _origin(folder).get("base", {}).get("quantization")
    return found if isinstance(found, dict) else None


def quantized_from(folder: Path) -> str | None:
    """The dtype that the base was rounded to before it was quantized; None: it was not, or nothing says it."""
    found = _origin(folder).get("base", {}).get("quantized_from")
    return found if isinstance(found, str) else None


def embedding_rows(folder: Path) -> int:
    """How many rows of embeddings the model had that the adapter was trained on, new tokens included; 0 where nothing
    says it."""
    found = _origin(folder).get("embedding_rows", 0)
    return found if isinstance(found, int) else 0


def new_tokens(folder: Path) -> dict[str, int]:
    """Tokens that the base did not have, and the ids that they had in training, in their order; none where nothing says
    it."""
    found = _origin(folder).get("new_tokens", {})
    return dict(sorted(found.items(), key=lambda item: item[1])) if isinstance(found, dict) else {}


def begins(folder: Path) -> Any:
    """`init_lora_weights` of the adapter's training; None where nothing says it."""
    return _origin(folder).get("begins")


def went_on_from(folder: Path) -> str | None:
    """The adapter that this one went on from; None where it began anew, or nothing says it."""
    found = _origin(folder).get("adapter_path")
    return found if isinstance(found, str) else None


def starts_at_base(folder: Path) -> bool:
    """Whether the adapter began as zero, so that switching it off gives what it began as."""
    if (folder / OURS).is_file():
        return bool(_origin(folder).get("starts_at_base", True))
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return config.get("init_lora_weights", True) in STARTS_AT_ZERO


def origin_of(folder: Path, base: Mapping[str, Any], adapter: str | None = None) -> dict[str, Any]:
    """What `luthier.json` says of a copy of a result of `base`: what it says of the result, as far as it says something.

    Args:
        adapter: the hash of the adapter that is in the copy.
    """
    found = {"base": dict(base), "system": trained_system(folder), **_origin(folder)}
    return found if adapter is None else found | {FROM_ADAPTER: adapter}


def made_of(folder: Path) -> str | None:
    """The hash of the adapter that a copy was made of; None where nothing says it."""
    found = _origin(folder).get(FROM_ADAPTER)
    return found if isinstance(found, str) else None


def trained_system(folder: Path) -> str | None:
    """The system text that all conversations of the training data had, for a result of luthier."""
    found = _origin(folder).get("system")
    return found if isinstance(found, str) else None


_Row = Annotated[int, Field(ge=0, le=1 << 20)]
"""Of embeddings. The largest vocabularies have 900,000 tokens; room for what a damaged number says is not to be had."""


class _HeldAs(BaseModel, extra="allow"):
    kind: str


class _Base(BaseModel, extra="allow"):
    """Of `luthier.json`, what is read of a base; the rest is compared, or shown."""

    name: str
    quantization: _HeldAs | None = None
    quantized_from: str | None = None


class _Origin(BaseModel, extra="allow"):
    """Of `luthier.json`, what is read."""

    base: _Base | None = None
    system: str | None = None
    new_tokens: dict[str, _Row] = {}
    embedding_rows: _Row = 0
    adapter_path: str | None = None
    starts_at_base: bool = True


def _origin(folder: Path) -> dict[str, Any]:
    """What luthier has written beside a result; nothing for one of another program.

    Raises:
        UserError: it is damaged: that must not read as if it said nothing.
    """
    file = folder / OURS
    if not file.is_file():
        return {}
    tree = read_json(file, str(folder))
    try:
        return _Origin.model_validate(tree, strict=True).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{file}: {'.'.join(map(str, first['loc']))}",
            f"{first['msg'].lower()}, found {excerpt(first['input'])}",
            "what luthier wrote",
            "copy the folder again",
        ) from None
