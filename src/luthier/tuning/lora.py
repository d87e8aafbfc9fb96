"""Low-rank adaptation (Hu et al., 2021, arXiv:2106.09685), through peft, whose file format everyone loads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from luthier.component import ComponentConfig
from luthier.errors import UserError

if TYPE_CHECKING:  # torch takes seconds to import, and a configuration is read without it
    from collections.abc import Iterator

    from torch import nn

    from luthier.dropout import DropoutKeys
    from luthier.tuning._anatomy import Anatomy

__all__ = ["Lora"]


class Lora:
    """Frozen weights W get a trained product: W x + lora_alpha / r * B A x, with A [R, in] and B [out, R] in float32."""

    class Config(ComponentConfig):
        kind: Literal["lora"] = "lora"
        r: Annotated[int, Field(ge=1)] = 16
        """Rank of the update."""
        lora_alpha: Annotated[int, Field(ge=1)] | None = None
        """The update is scaled by lora_alpha / r. Default: 2 r."""
        lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
        """Share of the adapter's inputs that is dropped in training; the mask depends on the row, not on the batch's layout."""
        target_modules: str | tuple[str, ...] = "all-linear"
        """Which layers get an update: `all-linear` (every attention and MLP projection), names (the last part of a module's name
        is enough), or one regular expression over whole names."""

    makes_adapter = True

    def __init__(self, config: Config) -> None:
        self.config = config

    def apply(self, model: nn.Module, keys: DropoutKeys) -> tuple[nn.Module, str]:
        """The model with an adapter, and a line that says what is trained.

        Raises:
            UserError: a pattern of target_modules matches nothing; names the linear layers that exist.
        """
        from peft import LoraConfig, get_peft_model

        from luthier.tuning._anatomy import anatomy

        config = self.config
        linear = dict(self._linear_layers(model))
        targets = self._targets(model, linear)
        alpha = config.lora_alpha if config.lora_alpha is not None else 2 * config.r
        parts = anatomy(model)
        transposed = any(type(module).__name__ == "Conv1D" for module in linear.values())
        adapted = get_peft_model(
            model,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=config.r,
                lora_alpha=alpha,
                lora_dropout=config.lora_dropout,
                target_modules=targets,
                bias="none",
                fan_in_fan_out=transposed,
            ),
        )
        replace_dropout(adapted, keys)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return adapted, self._coverage(adapted, parts)

    def _linear_layers(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        from torch import nn

        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) or type(module).__name__ in ("Conv1D", "Linear4bit", "Linear8bitLt"):
                yield name, module

    def _targets(self, model: Any, linear: dict[str, nn.Module]) -> str | list[str]:
        """What peft is asked for.

        `all-linear`: every projection but the head and the routers of experts, by short names where these say the same;
        of some mixtures also without those that peft would look for among the experts, which the coverage shows.
        """
        from luthier.tuning._anatomy import is_router

        asked = self.config.target_modules
        if asked != "all-linear":
            self._refuse_unmatched(asked, linear)
            if isinstance(asked, str) and not _rewritten(asked, model):
                return asked
            names = [name for name in linear if re.fullmatch(asked, name)] if isinstance(asked, str) else list(asked)
            if moved := [name for name in names if _rewritten([name], model)]:
                raise UserError(
                    "tuning.target_modules",
                    f"peft takes {moved[0]!r} for the experts of this mixture, not for the linear layers of that name",
                    "names of other layers",
                    "tuning.target_modules=all-linear",
                )
            return names
        head = model.get_output_embeddings()
        wanted = {
            name
            for name, module in linear.items()
            if module is not head and not is_router(model, name) and not _read_by_a_fused_kernel(name, model)
        }
        by_leaf: dict[str, list[str]] = {}
        for name, _ in model.named_modules():
            by_leaf.setdefault(name.rpartition(".")[2], []).append(name)
        targets = {leaf for leaf, names in by_leaf.items() if wanted.issuperset(names)}
        targets |= {name for name in wanted if name.rpartition(".")[2] not in targets}
        return sorted(target for target in targets if not _rewritten([target], model))

    def _refuse_unmatched(self, asked: str | tuple[str, ...], linear: dict[str, nn.Module]) -> None:
        for pattern in (asked,) if isinstance(asked, str) else asked:
            try:
                matched = any(
                    re.fullmatch(pattern, name)
                    if isinstance(asked, str)
                    else name == pattern or name.endswith("." + pattern)
                    for name in linear
                )
            except re.error as error:
                raise UserError(
                    "tuning.target_modules",
                    f"{pattern!r} is no regular expression: {error}",
                    "for example .*\\.(q|v)_proj",
                ) from None
            if not matched:
                known = sorted({name.rpartition(".")[2] for name in linear})
                raise UserError(
                    "tuning.target_modules",
                    f"{pattern!r} matches no linear layer of this model",
                    "of " + ", ".join(known),
                    f"tuning.target_modules=[{', '.join(known[:2])}]",
                )

    def _coverage(self, adapted: Any, parts: Anatomy) -> str:
        from peft.tuners.lora import LoraLayer

        core = adapted.get_base_model()
        covered = {name for name, module in core.named_modules() if isinstance(module, LoraLayer)}
        trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in adapted.parameters())
        share = f"{100 * trained / total:.2f} % of {total:,}"
        return f"LoRA on {parts.coverage(covered)}: {trained:,} trained parameters ({share})"


def _read_by_a_fused_kernel(name: str, model: nn.Module) -> bool:
    """Whether it is the output projection of a state-space mixer, whose kernel reads the weight itself.

    An adapter on it would be passed by.
    """
    parent, _, leaf = name.rpartition(".")
    return leaf == "out_proj" and hasattr(model.get_submodule(parent), "conv1d")


def replace_dropout(adapted: Any, keys: DropoutKeys) -> None:
    """Puts keyed dropout where peft put dropout with a generator's state."""
    from peft.tuners.lora import LoraLayer
    from torch import nn

    from luthier.dropout import KeyedDropout

    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer):
            for adapter, dropout in list(module.lora_dropout.items()):
                if isinstance(dropout, nn.Dropout):
                    module.lora_dropout[adapter] = KeyedDropout(dropout.p, name, keys)


def _rewritten(targets: str | list[str], model: nn.Module) -> bool:
    """Whether peft puts other targets in the place of these, names or one regular expression.

    It does for mixtures whose experts were linear layers in earlier versions of transformers and are one tensor now: a
    name such as down_proj then stands for the experts, also where a shared MLP has a layer of that name. A folder that
    loads in plain peft cannot say it otherwise.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    trial = LoraConfig(target_modules=targets)
    before = trial.target_modules
    try:
        convert_peft_config_for_transformers(trial, model=model, conversions=None)
    except ValueError:  # a part of the experts' tensor
        return True
    return bool(trial.target_modules != before)
