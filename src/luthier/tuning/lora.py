"""Low-rank adaptation (Hu et al., 2021, arXiv:2106.09685), through peft, whose file format everyone loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from luthier.component import ComponentConfig, Place
from luthier.config.bounds import LayerNumber, Name, Rank, Weight
from luthier.errors import UserError
from luthier.system.words import counted
from luthier.tuning import Start, Tuned
from luthier.tuning._patterns import ALL_LINEAR, as_names, matched

if TYPE_CHECKING:  # torch takes seconds to import, and a configuration is read without it
    from collections.abc import Mapping, Sequence

    from torch import nn

    from luthier.kernels.dropout import DropoutKeys
    from luthier.tuning._anatomy import Anatomy

__all__ = ["Lora"]

Alpha = Annotated[int, Field(ge=1, le=1_000_000)]
Niter = Annotated[str, Field(pattern=r"^pissa_niter_[1-9]\d?$")]

OF_THE_ADAPTER = (
    "r",
    "lora_alpha",
    "target_modules",
    "layers_to_transform",
    "experts",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
)
"""Keys whose values an adapter to go on from brings with it."""

BY_PEFT = ("gaussian", "orthogonal")
"""Beginnings for which peft leaves the base alone."""


def plain_form(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `tuning` in one form for what means the same: names as a sorted list, and `lora_alpha` as the number that it
    means where it is left out."""
    out = dict(keys)
    asked = out.get("target_modules", ALL_LINEAR)
    names = as_names(asked if isinstance(asked, str) else tuple(asked))
    if not isinstance(names, str):
        out["target_modules"] = sorted(names)
    if "lora_alpha" in out and out["lora_alpha"] is None and isinstance(out.get("r"), int):
        out["lora_alpha"] = 2 * out["r"]
    return out


class Lora:
    """Frozen weights W get a trained product: W x + lora_alpha / r * B A x, with A [R, in] and B [out, R] in float32."""

    class Config(ComponentConfig):
        kind: Literal["lora"] = "lora"
        r: Rank = 16
        """Rank of the update."""
        lora_alpha: Alpha | None = None
        """The update is scaled by lora_alpha / r. Default: 2 r."""
        lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
        """Share of the adapter's inputs that is dropped in training; the mask depends on the row, not on the batch's layout."""
        target_modules: Name | Annotated[tuple[Name, ...], Field(min_length=1)] = ALL_LINEAR
        """Which layers get an update: `all-linear` (every attention and MLP projection), names (the last part of a module's name
        is enough; a single one may stand alone: `W_pack`), or one regular expression over whole names."""
        layers_to_transform: Annotated[tuple[LayerNumber, ...], Field(min_length=1)] | None = None
        """Numbers of the layers that get an update, from 0. Default: all."""
        experts: bool = False
        """Whether the experts of a mixture get an update too; the router never does unless it is named."""
        use_rslora: bool = False
        """Scales the update by lora_alpha / sqrt(r) instead (rank-stabilised LoRA, Kalajdzievski, 2023)."""
        use_dora: bool = False
        """Trains the length of each output's weights apart from their direction (DoRA, Liu et al., 2024)."""
        init_lora_weights: Literal["gaussian", "orthogonal", "pissa", "olora", "loftq", "eva"] | Niter | bool = True
        """How A and B begin. `true`: B is zero. `gaussian`: so too, A normal. `orthogonal`: their product is zero. `pissa`
        (`pissa_niter_4`: a faster decomposition), `olora`: at the main parts of the weights. `loftq`: at what quantization
        to 4 bits lost. `eva`: B is zero, A the main directions of the layer's inputs on the first rows."""
        rank_pattern: dict[Name, Rank] = Field(default_factory=dict)
        """Another rank for some layers: names, or regular expressions for the end of a name, and their r."""
        alpha_pattern: dict[Name, Alpha] = Field(default_factory=dict)
        """Another lora_alpha for some layers."""
        modules_to_save: tuple[Name, ...] = ()
        """Modules beside them that are trained whole and saved with the adapter, such as `embed_tokens` or `lm_head`; where
        these two share a weight they go on sharing it."""
        loraplus_lr_ratio: Weight | None = None
        """B learns at so many times the learning rate (LoRA+, Hayou et al., 2024, takes 16). Default: at the same rate."""
        adapter_path: Place | None = None
        """A run, or a folder with an adapter on this very base, to go on from. Ranks, scales and layers are then its own."""

    makes_adapter = True
    defaults: ClassVar = {"learning_rate": 2e-4, "weight_decay": 0.0}

    def __init__(self, config: Config) -> None:
        self.config = config

    def apply(self, model: nn.Module, start: Start) -> Tuned:
        """The model with an adapter: a new one, or the one to go on from.

        Raises:
            UserError: a pattern matches nothing, with what there is; or values that do not go together.
        """
        if self.config.adapter_path is not None:
            return self._go_on(start.load(model, self.config.adapter_path), start)
        return self._new(model, start)

    def _new(self, model: nn.Module, start: Start) -> Tuned:
        from peft import LoraConfig, get_peft_model

        from luthier.tuning._anatomy import anatomy, score_of
        from luthier.tuning._targets import (
            expert_tensors,
            linear_layers,
            refuse_special_head,
            target_modules,
            with_tied,
        )

        config = self.config
        linear, layers = dict(linear_layers(model)), config.layers_to_transform
        targets = target_modules(model, config.target_modules, config.experts, layers)
        tensors = expert_tensors(model, layers) if config.experts else []
        self._refuse_wrong(model, linear, tensors)
        parts = anatomy(model)
        transposed = any(type(module).__name__ == "Conv1D" for module in linear.values())
        by_peft = isinstance(config.init_lora_weights, bool) or config.init_lora_weights in BY_PEFT
        scored = score_of(model)
        whole = [*with_tied(model, config.modules_to_save), *scored]
        rows = _outside(whole, start.new_rows)
        refuse_special_head(model, targets, rows)
        adapted = get_peft_model(
            model,
            LoraConfig(
                task_type="SEQ_CLS" if scored else "CAUSAL_LM",
                r=config.r,
                lora_alpha=config.lora_alpha if config.lora_alpha is not None else 2 * config.r,
                lora_dropout=config.lora_dropout,
                target_modules=targets,
                target_parameters=tensors or None,
                bias="none",
                fan_in_fan_out=transposed,
                use_rslora=config.use_rslora,
                use_dora=config.use_dora,
                init_lora_weights=config.init_lora_weights if by_peft else True,
                rank_pattern=dict(config.rank_pattern),
                alpha_pattern=dict(config.alpha_pattern),
                modules_to_save=list(whole) or None,
                trainable_token_indices=rows,
            ),
        )
        adapted.peft_config["default"].modules_to_save = whole or None  # peft adds names of its own to a list
        _make_ready(adapted, start.keys)
        self._begin(adapted, start)
        said, off = self._coverage(adapted, parts), self._off_is_start(adapted)
        return Tuned(adapted, said, off, self._rates(), waiting=_waiting(adapted))

    def _go_on(self, adapted: Any, start: Start) -> Tuned:
        """A loaded adapter as one that is trained on.

        Raises:
            UserError: a key asks for something else than the adapter is.
        """
        from torch import nn

        from luthier.kernels.lora import lora_layers

        loaded = adapted.peft_config["default"]
        for name in OF_THE_ADAPTER:
            asked, default = (
                getattr(self.config, name),
                type(self.config).model_fields[name].get_default(call_default_factory=True),
            )
            if asked != default and not _same(asked, getattr(loaded, name, None)):
                raise UserError(
                    f"tuning.{name}",
                    f"{asked!r} beside tuning.adapter_path, which has its own",
                    "no other value",
                    f"leave {name} out, or tuning.adapter_path",
                )
        if loaded.target_parameters and self.config.lora_dropout > 0:
            raise UserError(
                "tuning", "lora_dropout on experts, which have none", "values that go together", "lora_dropout=0"
            )
        loaded.lora_dropout = self.config.lora_dropout
        for _, layer in lora_layers(adapted):
            layer.lora_dropout["default"] = nn.Dropout(loaded.lora_dropout) if loaded.lora_dropout else nn.Identity()
        _make_ready(adapted, start.keys)
        said = f"goes on from {self.config.adapter_path}, rank {loaded.r}; {self._coverage(adapted, None)}"
        return Tuned(
            adapted, said, rates=self._rates(), adapter_path=self.config.adapter_path, waiting=_waiting(adapted)
        )

    def _begin(self, adapted: Any, start: Start) -> None:
        """Beginnings that peft does not have, or not on a base that stays as it is."""
        from luthier.tuning._inputs import begin_at_inputs
        from luthier.tuning._starts import begin_at_main_parts, begin_at_what_was_lost

        how = self.config.init_lora_weights
        if isinstance(how, str) and how.startswith(("pissa", "olora")):
            begin_at_main_parts(adapted, how, start)
        elif how == "loftq":
            begin_at_what_was_lost(adapted, start)
        elif how == "eva":
            begin_at_inputs(adapted, start)

    def _off_is_start(self, adapted: Any) -> Literal["to the bit", "to rounding", "no"]:
        """Of a new adapter. B A = 0, or is counted from its start; `loftq` begins elsewhere on purpose."""
        from luthier.tuning._starts import holds_copies_in_other_bits

        config = self.config
        if config.init_lora_weights == "loftq":
            return "no"
        # A product of orthogonal factors, and DoRA's length over the length that is computed again, are 0 and 1 to rounding.
        rounded = config.init_lora_weights == "orthogonal" or config.use_dora or holds_copies_in_other_bits(adapted)
        return "to rounding" if rounded else "to the bit"

    def _rates(self) -> dict[str, float]:
        ratio = self.config.loraplus_lr_ratio
        return {".lora_B.": ratio} if ratio is not None else {}

    def _refuse_wrong(self, model: nn.Module, linear: dict[str, nn.Module], tensors: list[str]) -> None:
        """What peft would take without a word, or fail at with a message of its own."""
        config, how = self.config, self.config.init_lora_weights
        plain = isinstance(how, bool) or how == "gaussian"
        # For each length peft moves the weight, and on a CPU bitsandbytes loses its scales by that.
        int8_on_cpu = any(type(m).__name__ == "Linear8bitLt" and m.weight.device.type == "cpu" for m in linear.values())
        for wrong, found, fix in (
            (how is False, "init_lora_weights: false, which leaves B random", "init_lora_weights=true"),
            (bool(tensors) and config.lora_dropout > 0, "lora_dropout on experts, which have none", "lora_dropout=0"),
            (bool(tensors) and config.use_dora, "use_dora on experts in one tensor", "use_dora=false"),
            (config.use_dora and int8_on_cpu, "use_dora on weights in int8 on a CPU", "quantization=nf4"),
            (bool(tensors) and not plain, f"init_lora_weights: {how} on experts", "init_lora_weights=true"),
            (
                config.use_dora and not plain and how != "eva",
                f"use_dora with init_lora_weights: {how}",
                "use_dora=false",
            ),
            (how == "orthogonal" and config.r % 2 == 1, f"init_lora_weights: orthogonal at r {config.r}", "an even r"),
        ):
            if wrong:
                raise UserError("tuning", found, "values that go together", fix)
        known = {"rank_pattern": linear, "alpha_pattern": linear, "modules_to_save": dict(model.named_modules())}
        for name, modules in known.items():
            for pattern in getattr(config, name):
                if not matched(rf"(.*\.)?({pattern})", modules, f"tuning.{name}"):
                    last = sorted({module.rpartition(".")[2] for module in modules if module})
                    raise UserError(
                        f"tuning.{name}", f"{pattern!r} matches nothing in this model", "of " + ", ".join(last[:20])
                    )

    def _coverage(self, adapted: Any, parts: Anatomy | None) -> str:
        from luthier.kernels.lora import lora_layers
        from luthier.tuning._anatomy import count_of, score_of

        covered = [name for name, _ in lora_layers(adapted)]
        kinds = dict.fromkeys(name.rpartition(".")[2] for name in covered)
        trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
        total = sum(map(count_of, adapted.parameters()))
        share = f"{100 * trained / total:.2f} % of {total:,}"
        layers = counted(len(covered), "layer")
        where = parts.coverage(set(covered)) if parts is not None else layers
        if score_of(adapted.get_base_model()):
            where += ", and the whole head of scores"
        return f"LoRA on {where}: {trained:,} trained parameters ({share}) in {layers}: {', '.join(kinds)}"


def _waiting(adapted: Any) -> list[nn.Parameter]:
    """What of an adapter learns only once a token comes to it: parts on experts, and the rows of new tokens."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    from luthier.tuning._anatomy import trained_experts

    layers = [module for module in adapted.modules() if isinstance(module, TrainableTokensLayer)]
    return [*trained_experts(adapted), *(p for layer in layers for p in layer.trainable_tokens_delta.values())]


def _same(asked: Any, own: Any) -> bool:
    """Whether a key asks for what an adapter has; of peft's names of modules the last part is enough."""
    if isinstance(asked, tuple) and isinstance(own, (list, set, tuple)):
        return set(asked) in (set(own), {str(name).rpartition(".")[2] for name in own})
    return bool(asked == own)


def _outside(whole: Sequence[str], new_rows: Mapping[str, Sequence[int]]) -> dict[str, list[int]] | None:
    """What of `new_rows` is not in a module that is trained whole."""
    left = {name: list(ids) for name, ids in new_rows.items() if not any(name.endswith(part) for part in whole)}
    return left or None


def _make_ready(adapted: Any, keys: DropoutKeys) -> None:
    """Keyed dropout, shared edges, updates of experts beside them, and all that is trained in float32."""
    from luthier.kernels.experts_lora import compute_apart, refuse_lost_updates
    from luthier.kernels.lora import tie_edges

    _replace_dropout(adapted, keys)
    tie_edges(adapted)
    compute_apart(adapted)
    refuse_lost_updates(adapted)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _replace_dropout(adapted: Any, keys: DropoutKeys) -> None:
    """Puts keyed dropout where peft put dropout with a generator's state."""
    from torch import nn

    from luthier.kernels.dropout import KeyedDropout
    from luthier.kernels.lora import lora_layers

    for name, layer in lora_layers(adapted):
        for adapter, dropout in list(layer.lora_dropout.items()):
            if isinstance(dropout, nn.Dropout):
                layer.lora_dropout[adapter] = KeyedDropout(dropout.p, f"base_model.model.{name}", keys)
