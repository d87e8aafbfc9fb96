"""What a model is made of: its modules, how each weight is held, what is trained, and the memory of it all.

Memory is that of the tensors that are there, a quantized weight's scales included; shapes are those of the matrices
that are multiplied with, not of the bytes that hold them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from luthier.system.words import human_bytes

HEADINGS = ("module", "class", "shape", "held as", "bits", "trained", "memory")
TEXT_COLUMNS = 4
"""How many of the columns are text; the others are set to the right."""


@dataclass(frozen=True, slots=True)
class Held:
    """One weight, or one buffer."""

    name: str
    """within its module: `weight`"""
    shape: tuple[int, ...]
    kind: str
    """how its numbers are held: `bfloat16`, `int8`, `nf4`, `fp4`"""
    bytes: int
    trained: bool
    tied_to: str = ""
    """the whole name of the weight that it is the same tensor as; its bytes are counted there"""
    is_buffer: bool = False

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def bits(self) -> float:
        """A number's share of the memory."""
        return 8 * self.bytes / max(1, self.numbers)


@dataclass(frozen=True, slots=True)
class Node:
    """A module, or several alike that stand one after the other."""

    name: str
    """`q_proj`; of several: `0-29`"""
    cls: str
    held: tuple[Held, ...]
    """its own weights and buffers"""
    children: tuple[Node, ...]
    """those of one, where the node stands for several"""
    count: int = 1

    @property
    def weights(self) -> list[Held]:
        return [held for held in self.held if not held.is_buffer]

    @property
    def all_held(self) -> list[Held]:
        """Of the module and all below it, as often as they are there."""
        below = [held for child in self.children for held in child.all_held]
        return [*self.held, *below] * self.count


def tree(model: nn.Module) -> Node:
    """Every module of a model, none left out and none collapsed."""
    return _node("", model, "", {})


def _node(name: str, module: nn.Module, path: str, seen: dict[int, str]) -> Node:
    held = []
    for own, parameter in module.named_parameters(recurse=False):
        whole = f"{path}.{own}" if path else own
        tied = seen.setdefault(id(parameter), whole)
        held.append(_weight(own, parameter, "" if tied == whole else tied))
    for own, buffer in module.named_buffers(recurse=False):
        if seen.setdefault(id(buffer), own) == own:
            held.append(Held(own, tuple(buffer.shape), _name(buffer.dtype), buffer.nbytes, False, is_buffer=True))
    children = [
        _node(child_name, child, f"{path}.{child_name}" if path else child_name, seen)
        for child_name, child in module.named_children()
    ]
    return Node(name, _class(module), tuple(held), tuple(children))


def _class(module: nn.Module) -> str:
    """peft's classes are called as those that they wrap, so they are named with their folder: `lora.Linear`."""
    package = type(module).__module__.split(".")
    return f"{package[-2]}.{type(module).__name__}" if package[0] == "peft" else type(module).__name__


def _weight(name: str, parameter: nn.Parameter, tied_to: str) -> Held:
    shape, kind, size = tuple(parameter.shape), _name(parameter.dtype), parameter.nbytes
    state = getattr(parameter, "quant_state", None)
    if state is not None:  # 4 bits, two numbers in a byte
        shape, kind, size = tuple(state.shape), str(state.quant_type), size + _state_bytes(state)
    elif getattr(parameter, "SCB", None) is not None:  # 8 bits, and a scale for each row
        size += parameter.SCB.nbytes  # type: ignore[attr-defined]
    return Held(name, shape, kind, 0 if tied_to else size, parameter.requires_grad, tied_to)


def _state_bytes(state: Any) -> int:
    """Of the scales of the blocks and the scales of these scales.

    The tables of the codes (64 bytes, and 1 kB of scales), which all weights may share, are left out.
    """
    parts = [value for name, value in vars(state).items() if isinstance(value, torch.Tensor) and name != "code"]
    nested = getattr(state, "state2", None)
    return sum(part.nbytes for part in parts) + (_state_bytes(nested) if nested is not None else 0)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def collapsed(node: Node) -> Node:
    """The tree for the eye: alike neighbours as one, no modules without weights, no levels that say nothing."""
    children: list[Node] = []
    for child in map(collapsed, (child for child in node.children if any(not h.is_buffer for h in child.all_held))):
        before = children[-1] if children else None
        if before is not None and child.name.isdigit() and _alike(before, child):
            first = before.name.partition("-")[0]
            children[-1] = replace(before, name=f"{first}-{child.name}", count=before.count + 1)
        else:
            children.append(child)
    if len(children) == 1 and children[0].count == 1 and not node.held and node.name:
        return replace(children[0], name=f"{node.name}.{children[0].name}")
    return replace(node, children=tuple(children))


def _alike(one: Node, other: Node) -> bool:
    return replace(one, name="", count=1) == replace(other, name="", count=1)


def totals(node: Node) -> dict[str, Any]:
    """Numbers and bytes, altogether and by how they are held; JSON-able."""
    held = node.all_held
    weights = [item for item in held if not item.is_buffer and not item.tied_to]
    kinds = sorted({item.kind for item in weights})
    by_kind = {kind: [item for item in weights if item.kind == kind] for kind in kinds}
    return {
        "parameters": sum(item.numbers for item in weights),
        "trained": sum(item.numbers for item in weights if item.trained),
        "bytes": sum(item.bytes for item in held),
        "buffer_bytes": sum(item.bytes for item in held if item.is_buffer),
        "held_as": {kind: _sums(items) for kind, items in by_kind.items()},
    }


def _sums(items: list[Held]) -> dict[str, Any]:
    numbers, size = sum(item.numbers for item in items), sum(item.bytes for item in items)
    return {"parameters": numbers, "bytes": size, "bits": round(8 * size / max(1, numbers), 3)}


def as_list(node: Node, path: str = "") -> Iterator[dict[str, Any]]:
    """Each module of an uncollapsed tree with its whole name, for programs."""
    yield {
        "name": path,
        "class": node.cls,
        "held": [
            {
                "name": held.name,
                "shape": list(held.shape),
                "held_as": held.kind,
                "bits": round(held.bits, 3),
                "bytes": held.bytes,
                "trained": held.trained,
                "tied_to": held.tied_to or None,
                "buffer": held.is_buffer,
            }
            for held in node.held
        ],
    }
    for child in node.children:
        yield from as_list(child, f"{path}.{child.name}" if path else child.name)


def as_text(whole: Node, everything: bool = False) -> str:
    """A table with a module a line, and the sums.

    Args:
        whole: an uncollapsed tree.
        everything: whether every module has its line, also those without weights.
    """
    node = whole if everything else collapsed(whole)
    rows = [HEADINGS, *_rows(node, 0)]
    if any(child.count > 1 for child in _all_nodes(node)):
        rows.append(("(lines below an N x are those of one of the N)", *[""] * (len(HEADINGS) - 1)))
    return "\n".join([*table(rows, TEXT_COLUMNS), "", *_sum_lines(totals(whole))])


def table(rows: Sequence[Sequence[str]], text_columns: int) -> list[str]:
    """Rows as lines; the first columns are text and stand left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _rows(node: Node, depth: int) -> Iterator[tuple[str, ...]]:
    weights, several = node.weights, node.count > 1
    shown = [held for held in weights if not held.tied_to]
    everything = [held for held in node.all_held if not held.is_buffer and not held.tied_to]
    trained = sum(held.numbers for held in everything if held.trained)
    numbers, size = sum(held.numbers for held in shown), sum(held.bytes for held in shown)
    yield (
        "  " * depth + (node.name or "(the model)"),
        f"{node.count} x {node.cls}" if several else node.cls,
        " + ".join(_shape(held) for held in weights),
        " + ".join(dict.fromkeys(f"= {held.tied_to}" if held.tied_to else held.kind for held in weights)),
        f"{8 * size / numbers:.1f}" if numbers else "",
        f"{trained:,}" if trained else "",
        human_bytes(sum(held.bytes for held in node.all_held)),
    )
    for child in node.children:
        yield from _rows(child, depth + 1)


def _shape(held: Held) -> str:
    return " x ".join(map(str, held.shape)) or "1"


def _sum_lines(found: dict[str, Any]) -> list[str]:
    share = 100 * found["trained"] / max(1, found["parameters"])
    lines = [
        f"{found['parameters']:,} parameters, {found['trained']:,} of them trained ({share:.2f} %); "
        f"{human_bytes(found['bytes'])}, {human_bytes(found['buffer_bytes'])} of it buffers"
    ]
    for kind, sums in found["held_as"].items():
        held = f"{sums['parameters']:,} parameters in {human_bytes(sums['bytes'])}"
        lines.append(f"  {kind}: {held}, {sums['bits']:.2f} bits each")
    return lines


def _all_nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _all_nodes(child)
