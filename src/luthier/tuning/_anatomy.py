"""How much of a model an adapter is on, by parts of the model.

No list of architectures: a weight belongs to a part by the names and classes of the modules around it, which nearly all
models share, and by what stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from luthier.errors import UserError

ATTENTION, MLP, EXPERTS, EDGES, OTHER = "attention", "MLP", "experts", "embeddings and head", "other"
PARTS = (ATTENTION, MLP, EXPERTS, EDGES, OTHER)

SCORE = "score"
"""What transformers calls the head of a sequence classification."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
ATTENTION_WORDS = ("attention", "attn")
MLP_WORDS = ("mlp", "ffn", "feed_forward", "feedforward")
PROJECTIONS_OF_ATTENTION = {"q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value"}
PROJECTIONS_OF_MLP = {"up_proj", "down_proj", "gate_proj"}


@dataclass(frozen=True, slots=True)
class Weight:
    """The matrix of one module, or its tensors of experts."""

    module: str
    part: str
    parameters: int


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The weights of a model with two and more dimensions; biases and norms do not count."""

    weights: tuple[Weight, ...]
    experts: str
    """`32 x 24 experts`: experts of a layer, layers; just `experts` where layers differ"""

    def coverage(self, adapted: Collection[str]) -> str:
        """`100 % of attention, 0 % of 32 x 24 experts`, by parameters of the modules that are adapted."""
        words = []
        for part in PARTS:
            held = [weight for weight in self.weights if weight.part == part]
            total = sum(weight.parameters for weight in held)
            covered = sum(weight.parameters for weight in held if weight.module in adapted)
            if total:
                words.append(f"{_percent(covered, total)} % of {self.experts if part == EXPERTS else part}")
        return ", ".join(words)


def count_of(parameter: torch.Tensor) -> int:
    """The numbers that a weight holds, also where two of 4 bits lie in a byte."""
    packed = getattr(parameter, "quant_state", None)
    return math.prod(packed.shape) if packed is not None else parameter.numel()


def _percent(covered: int, total: int) -> str:
    """Rounded down: 100 is all of it."""
    return (
        f"{math.floor(1000 * covered / total) / 10:g}" if covered in (0, total) or covered * 1000 >= total else "<0.1"
    )


def anatomy(model: Any) -> Anatomy:
    """Which weight of a causal language model of transformers, without an adapter, is of which part."""
    edges = (model.get_input_embeddings(), head_of(model))
    weights, layers = list[Weight](), dict[str, int]()
    seen = set[int]()  # a tied head is the embeddings' matrix
    for name, module in model.named_modules():
        matrices = [p for p in module.parameters(recurse=False) if p.dim() >= 2 and id(p) not in seen]
        seen |= {id(matrix) for matrix in matrices}
        if not matrices:
            continue
        size = sum(map(count_of, matrices))
        if hasattr(module, "in_features") and hasattr(module, "out_features"):
            size = module.in_features * module.out_features  # weights of 4 bits are packed
        if module in edges or isinstance(module, nn.Embedding):
            part = EDGES
        elif is_router(model, name):
            part = OTHER
        elif any(parameter.dim() == 3 and parameter.shape[0] == experts_of(model) for parameter in matrices):
            part = EXPERTS
        else:
            part = _part_of(model, name)
        if part == EXPERTS:
            layers |= _experts(model, name, int(matrices[0].shape[0]))
        weights.append(Weight(name, part, size))
    counts = set(layers.values())
    return Anatomy(tuple(weights), f"{counts.pop()} x {len(layers)} experts" if len(counts) == 1 else "experts")


def head_of(model: Any) -> Any:
    """What stands behind the layers: the head of words, or the one that gives a document its score; None where there is neither."""
    words = model.get_output_embeddings()
    return words if words is not None else getattr(model, SCORE, None)


def score_of(model: Any) -> list[str]:
    """The name of the head that gives a document its score, which is trained whole under every method; none of a model of words."""
    return [SCORE] if model.get_output_embeddings() is None and hasattr(model, SCORE) else []


def experts_of(model: Any) -> int | None:
    """Experts in a layer of a mixture, as its configuration says."""
    config = model.config.get_text_config()
    return getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)


def is_router(model: Any, name: str) -> bool:
    """Whether a module chooses the experts of a mixture: as many outputs as experts, and it stands beside them."""
    module, beside = model.get_submodule(name), model.get_submodule(name.rpartition(".")[0])
    weight = getattr(module, "weight", None)
    outputs = getattr(module, "out_features", None if weight is None else weight.shape[0])
    return outputs is not None and outputs == experts_of(model) and hasattr(beside, "experts")


def trained_experts(model: nn.Module) -> list[nn.Parameter]:
    """What is trained of the experts of a mixture, or on them."""
    return [p for name, p in model.named_parameters() if p.requires_grad and "experts" in name.split(".")]


def layers_of(model: Any) -> tuple[str, nn.ModuleList]:
    """The model's stack of layers, and its name in the model.

    Raises:
        UserError: it has none that is as long as its configuration says.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise UserError(
        "tuning", f"no stack of {count} layers was found in this model", "a model with one", "name weights by patterns"
    )


def _experts(model: nn.Module, name: str, stacked: int) -> dict[str, int]:
    """The layer whose experts a weight is of, and how many these are: modules in a list, or slices of one tensor."""
    parts = name.split(".")
    if "experts" not in parts:
        return {name.rpartition(".")[0]: stacked}
    path = ".".join(parts[: parts.index("experts") + 1])
    container = model.get_submodule(path)
    return {path: len(container) if isinstance(container, nn.ModuleList) else stacked}


def _part_of(model: nn.Module, name: str) -> str:
    """By the nearest module around the weight, or the weight's own, that says what it is."""
    for leaf, module in _outwards(model, name):
        said = f"{leaf} {type(module).__name__}".lower()
        beside = dict(module.named_children())
        mlp = any(word in said for word in MLP_WORDS)
        if leaf == "experts":
            return EXPERTS
        if any(word in said for word in ATTENTION_WORDS) or (not mlp and beside.keys() & PROJECTIONS_OF_ATTENTION):
            return ATTENTION
        if mlp or beside.keys() & PROJECTIONS_OF_MLP:
            return EXPERTS if ".experts." in name else MLP
        if isinstance(module, CONVOLUTIONS) or any(isinstance(child, CONVOLUTIONS) for child in beside.values()):
            return OTHER
    layer = model.get_submodule(name.rpartition(".")[0])
    return MLP if _has_attention(layer) else OTHER  # a projection that lies in the layer itself


def _has_attention(layer: nn.Module) -> bool:
    """Whether a projection in the layer itself has attention beside it."""
    attention = [child for name, child in layer.named_children() if any(word in name for word in ATTENTION_WORDS)]
    return any(next(child.children(), None) is not None for child in attention)


def _outwards(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Last name and module: from the named one outwards, up to the model's own child."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        yield parts[end - 1], model.get_submodule(".".join(parts[:end]))
