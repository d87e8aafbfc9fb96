"""Tools in the rows of formats: the schemas on offer, and the calls that an assistant makes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from luthier.errors import BadRow, excerpt
from luthier.formats._shared import clean, found, missing
from luthier.system import strict_json
from luthier.types import Row, ToolCall

A_CALL = 'a map {"name": ..., "arguments": {...}}'


def json_text(row: Row, value: Any, field: str) -> str:
    """A value as JSON text, keys in their order.

    Raises:
        BadRow: it holds what JSON cannot say.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRow(row.place, field, f"{excerpt(value)}: {error}"[:120], "a value that JSON can hold") from None
    return clean(row, text, field)


def json_value(row: Row, text: str, field: str, expected: str) -> Any:
    """The value of JSON text. Raises BadRow."""
    try:
        return strict_json.parse(text)
    except ValueError as error:
        wrong = f"{excerpt(text)}: broken JSON: {strict_json.reason(error)}"
        raise BadRow(row.place, field, wrong, expected) from None


def tools_of(row: Row, column: str | None) -> str:
    """The tools on offer, as JSON text of a list of {"type": "function", "function": {name, ...}} maps; "" for none.

    The column holds such a list, or a list of the inner maps, or either as JSON text.

    Raises:
        BadRow: it holds anything else.
    """
    if column == "tools" and column not in row.values:
        column = "functions"  # beside `function_call`, as chat APIs had it before tools
    value = row.values.get(column) if column else None
    if isinstance(value, str):
        value = json_value(row, value, column or "", "a JSON list of tools") if value.strip() else None
    if value is None or value == [] or value == {}:
        return ""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise BadRow(row.place, column or "", found(value), "a list of tools, each a map with a name")
    return json_text(row, [_tool(row, tool, f"{column}[{index}]") for index, tool in enumerate(value)], column or "")


def _tool(row: Row, tool: Any, place: str) -> dict[str, Any]:
    if isinstance(tool, str):
        tool = json_value(row, tool, place, "a tool as a JSON map")
    if not isinstance(tool, Mapping):
        raise BadRow(row.place, place, found(tool), "a map with the name and the parameters of a tool")
    inner = tool.get("function") if "function" in tool else tool
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        keys = excerpt(sorted(map(str, inner if isinstance(inner, Mapping) else tool)))
        raise BadRow(row.place, f"{place}.name", f"missing; the keys are {keys}", "the tool's name")
    inside = f"{place}.function.parameters" if "function" in tool else f"{place}.parameters"
    parameters = inner.get("parameters") or {}
    if not isinstance(parameters, Mapping):
        raise BadRow(row.place, inside, found(parameters), "a JSON schema: a map")
    if not isinstance(properties := parameters.get("properties") or {}, Mapping):
        raise BadRow(row.place, f"{inside}.properties", found(properties), "a map of the parameters")
    return dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)}


def calls_of(row: Row, value: Any, field: str) -> tuple[ToolCall, ...]:
    """The calls of a list as chat APIs write it: {id, type, function: {name, arguments}}, or {name, arguments}.

    Raises:
        BadRow: the value is no such list.
    """
    if not isinstance(value, (list, tuple)):
        raise BadRow(row.place, field, found(value), f"a list, each of its parts {A_CALL}")
    return tuple(call_of(row, item, f"{field}[{index}]") for index, item in enumerate(value))


def calls_in_text(row: Row, text: str, field: str) -> tuple[ToolCall, ...]:
    """The calls that a text holds as JSON: one map, or a list of them. Raises BadRow."""
    value = json_value(row, text, field, f"JSON text of {A_CALL}, or of a list of them")
    if value == []:
        raise BadRow(row.place, field, "an empty list", "at least one call")
    return calls_of(row, value, field) if isinstance(value, list) else (call_of(row, value, field),)


def call_of(row: Row, value: Any, field: str) -> ToolCall:
    """One call. Its arguments are a map, or JSON text of one: both give the same call. Raises BadRow."""
    if not isinstance(value, Mapping):
        raise BadRow(row.place, field, found(value), A_CALL)
    inner = value["function"] if isinstance(value.get("function"), Mapping) else value
    name, arguments, given = inner.get("name"), inner.get("arguments"), value.get("id")
    if not isinstance(name, str) or not name.strip():
        wrong = missing(row, inner, "name") if name is None else excerpt(name)
        raise BadRow(row.place, f"{field}.name", wrong, "the name of the tool that is called")
    place = f"{field}.arguments"
    if isinstance(arguments, str) and arguments.strip():
        arguments = json_value(row, arguments, place, "JSON text of a map")
    if arguments is None or arguments == "":
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise BadRow(row.place, place, found(arguments), "a map of the arguments, or JSON text of one")
    if given is not None and not isinstance(given, str):
        raise BadRow(row.place, f"{field}.id", found(given), "text")
    identity = clean(row, given or "", f"{field}.id")
    return ToolCall(clean(row, name, f"{field}.name"), json_text(row, dict(arguments), place), identity)
