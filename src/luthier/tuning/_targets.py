"""Which layers of a model get an adapter, in the words that peft takes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from torch import nn

from luthier.errors import UserError
from luthier.tuning._anatomy import experts_of, head_of, is_router, layers_of
from luthier.tuning._patterns import as_names, matched

QUERIES = ("q_proj", "k_proj", "v_proj", "qkv_proj", "W_pack", "Wqkv", "query_key_value", "c_attn", "in_proj_qkv")
"""What the projections of queries, keys and values are called by one model or another, which may have one layer for the three."""

LINEAR = ("Conv1D", "Linear4bit", "Linear8bitLt")


def linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__ in LINEAR:
            yield name, module


def target_modules(
    model: Any, asked: str | tuple[str, ...], experts: bool, numbers: Collection[int] | None
) -> str | list[str]:
    """What peft is asked for.

    Args:
        asked: `all-linear`, names (also as a text, `q_proj,v_proj`), or one regular expression.
        experts: whether `all-linear` takes experts that are layers of their own.
        numbers: of the layers that get an adapter; None for all.

    Raises:
        UserError: something that is asked for matches nothing, or peft would take it for something else.
    """
    linear = dict(linear_layers(model))
    asked = as_names(asked)
    found = _all_linear(model, linear, experts) if asked == "all-linear" else _named(model, linear, asked)
    if numbers is None:
        return found
    inside = _inside(model, numbers)
    names = [name for name in linear if _is_target(found, name) and name.startswith(inside)]
    if not names:
        raise UserError(
            "tuning.layers_to_transform",
            f"no target_modules in the layers {', '.join(map(str, numbers))}",
            "layers that have one",
            "leave layers_to_transform out",
        )
    return names


def expert_tensors(model: Any, numbers: Collection[int] | None) -> list[str]:
    """Experts that are slices of one tensor, by the ends of their names (by whole names where layers are chosen).

    Raises:
        UserError: the model has no experts.
    """
    count = experts_of(model)
    stacked = [
        name
        for name, parameter in model.named_parameters()
        if count and parameter.dim() == 3 and parameter.shape[0] == count
    ]
    if not stacked and not any(".experts." in name for name, _ in linear_layers(model)):
        raise UserError("tuning.experts", "this model has no experts", "a mixture", "tuning.experts=false")
    if numbers is not None:
        return [name for name in stacked if name.startswith(_inside(model, numbers))]
    return sorted({".".join(name.split(".")[-2:]) for name in stacked})


def with_tied(model: Any, modules: Sequence[str]) -> list[str]:
    """`modules`, and with the embeddings or the head also the other one where they share a weight."""
    given, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    edges = [names[edge] for edge in (given, head) if edge is not None]
    if len(edges) < 2 or given.weight is not head.weight:
        return list(modules)
    asked = [edge for edge in edges if any(f".{edge}".endswith(f".{module}") for module in modules)]
    return [*modules, *(edge for edge in edges if asked and edge not in asked)]


def _inside(model: Any, numbers: Collection[int]) -> tuple[str, ...]:
    """How the names of all in these layers begin."""
    path, layers = layers_of(model)
    if beyond := [number for number in numbers if number >= len(layers)]:
        raise UserError(
            "tuning.layers_to_transform", f"layer {beyond[0]}; the model has {len(layers)}", f"0 to {len(layers) - 1}"
        )
    return tuple(f"{path}.{number}." for number in numbers)


def _is_target(targets: str | list[str], name: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _named(model: Any, linear: dict[str, nn.Module], asked: str | tuple[str, ...]) -> str | list[str]:
    if isinstance(asked, str):
        # peft will try it on the names of all modules
        found = matched(asked, (name for name, _ in model.named_modules()), "tuning.target_modules")
        names = [name for name in linear if name in found]
        if not names:
            raise _unmatched(asked, linear, ())
        if not _rewritten(asked, model):
            return asked
    else:
        names = list(asked)
        for target in names:
            if not any(_is_target([target], name) for name in linear):
                raise _unmatched(target, linear, names)
    if moved := [name for name in names if _rewritten([name], model)]:
        raise UserError(
            "tuning.target_modules",
            f"peft takes {moved[0]!r} for the experts of this mixture, not for the linear layers of that name",
            "names of other layers",
            "tuning.target_modules=all-linear",
        )
    return names


def _all_linear(model: Any, linear: dict[str, nn.Module], experts: bool) -> list[str]:
    """Every projection but the head, the routers and (unless asked for) the experts, by short names where these say the
    same; of some mixtures also without those that peft would look for among the experts, which the coverage shows."""
    head = head_of(model)
    wanted = {
        name
        for name, module in linear.items()
        if module is not head
        and not is_router(model, name)
        and not _read_by_a_fused_kernel(name, model)
        and (experts or ".experts." not in name)
    }
    by_leaf: dict[str, list[str]] = {}
    for name, _ in model.named_modules():
        by_leaf.setdefault(name.rpartition(".")[2], []).append(name)
    targets = {leaf for leaf, names in by_leaf.items() if wanted.issuperset(names)}
    targets |= {name for name in wanted if name.rpartition(".")[2] not in targets}
    return sorted(target for target in targets if not _rewritten([target], model))


def _unmatched(wrong: str, linear: dict[str, nn.Module], asked: Sequence[str]) -> UserError:
    """The error of a target that matches nothing; of several names the others are kept in what is proposed."""
    known = list(dict.fromkeys(name.rpartition(".")[2] for name in linear))
    meant = dict.fromkeys(other for name in asked for other in _meant(name, known))
    by_name = f", or tuning.target_modules={','.join(meant)}" if meant and _meant(wrong, known) else ""
    return UserError(
        "tuning.target_modules",
        f"{wrong!r} matches no linear layer of this model",
        "all-linear, or names of its layers: " + ", ".join(known),
        "tuning.target_modules=all-linear" + by_name,
    )


def _meant(name: str, known: Sequence[str]) -> list[str]:
    """The layers of a model that a name of another model's, or one that is spelt nearly so, stands for."""
    if name in known:
        return [name]
    if name in QUERIES:
        return [other for other in known if other in QUERIES]
    return difflib.get_close_matches(name, known, n=1, cutoff=0.65)


def _read_by_a_fused_kernel(name: str, model: nn.Module) -> bool:
    """Whether it is the output projection of a state-space mixer, whose kernel reads the weight itself.

    An adapter on it would be passed by.
    """
    parent, _, leaf = name.rpartition(".")
    return leaf == "out_proj" and hasattr(model.get_submodule(parent), "conv1d")


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


def refuse_special_head(model: Any, targets: str | Sequence[str], rows: Collection[str] | None) -> None:
    """Raises UserError where the head would get an update that cannot be merged, or would be computed by another formula.

    Args:
        targets: what peft is asked for.
        rows: names of modules of which single rows are trained.
    """
    head = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is head), "")
    if head is None or not name:
        return
    plain = type(head) is nn.Linear or type(head).__name__ in LINEAR
    tied = head.weight is model.get_input_embeddings().weight
    named = bool(re.fullmatch(targets, name)) if isinstance(targets, str) else name.rpartition(".")[2] in targets
    named = named or name in targets
    if named and (tied or not plain):
        found = (
            "shares its weight with the embeddings" if tied else f"is a {type(head).__name__}, no plain linear layer"
        )
        raise UserError(
            "tuning.target_modules",
            f"the head {name} {found}: an update of it cannot be merged",
            "layers without the head",
            f"tuning.modules_to_save=[{name.rpartition('.')[2]}] trains it whole",
        )
    if rows and name in rows and (named or not plain or getattr(head, "bias", None) is not None):
        because = "which gets an adapter" if named else f"a {type(head).__name__}"
        raise UserError(
            "data.add_tokens",
            f"peft cannot train single rows of this model's head {name}, {because}",
            "a head that is a plain linear layer without bias, and no adapter on it",
            "tuning.modules_to_save=["
            + ", ".join(sorted({row.rpartition(".")[2] for row in rows}))
            + "] trains all rows",
        )
