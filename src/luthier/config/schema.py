"""The JSON Schema of the configuration, for editors: what the YAML may say, bare strings included."""

from __future__ import annotations

from typing import Any

from luthier import component
from luthier.config.components import AUTO, COMPONENTS, DEFAULT_KINDS
from luthier.config.reading import FILLED_IN
from luthier.config.sections import RunConfig

Schema = dict[str, Any]

ELSEWHERE = {"type": "string", "pattern": "^[^:]+:[^:]+$", "description": "package.module:Class"}


def json_schema() -> Schema:
    """JSON Schema (2020-12) of the YAML file, with every kind of component that is installed."""
    schema: Schema = RunConfig.model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "luthier"}
    definitions = schema["$defs"]
    definitions.pop("ComponentConfig")
    sections = {
        "": schema,
        "model": definitions["ModelConfig"],
        "data.train": definitions["DataFile"],
        "training": definitions["TrainingConfig"],
    }
    for path, family in COMPONENTS.items():
        section = sections[".".join(path[:-1])]
        old = section["properties"][path[-1]]
        section["properties"][path[-1]] = _component(family, path[-1], old.get("description", ""), definitions)
    schema["required"] = [name for name in schema["required"] if name not in FILLED_IN]
    _widen(schema["properties"], "model", {"type": "string"})
    data_file = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/DataFile"}]}
    files = {"type": "array", "items": data_file, "minItems": 1}
    _widen(schema["properties"], "data", {"type": "string"}, files)
    in_data = definitions["DataConfig"]["properties"]
    in_data["train"] = {"anyOf": [*data_file["anyOf"], files], "description": in_data["train"]["description"]}
    _widen(in_data, "eval", *data_file["anyOf"], {"type": "array", "items": data_file})
    _widen(schema["properties"], "report_to", _items(schema["properties"]["report_to"]))
    return schema


def _items(schema: Schema) -> Schema:
    return dict(schema["items"])


def _widen(properties: Schema, name: str, *also: Schema) -> None:
    """Lets a key take more than its type says, because bare strings are widened before they are checked."""
    old = properties[name]
    about = {key: old.pop(key) for key in ("description", "title", "default") if key in old}
    properties[name] = {**about, "anyOf": [*old.pop("anyOf", [old] if old else []), *also]}


def _component(family: str, key: str, description: str, definitions: Schema) -> Schema:
    """A bare kind, or a map: the keys of one of the kinds, told apart by `kind`."""
    maps: list[Schema] = []
    for kind in component.listing(family):
        schema = component.load(family, kind).Config.model_json_schema()
        definitions.update(schema.pop("$defs", {}))
        if kind != DEFAULT_KINDS.get(key):
            schema["required"] = sorted({*schema.get("required", []), "kind"})
        definitions[f"{family}.{kind}"] = {**schema, "title": kind, "description": component.about(family, kind)}
        maps.append({"$ref": f"#/$defs/{family}.{kind}"})
    maps.append({"type": "object", "properties": {"kind": ELSEWHERE}, "required": ["kind"]})
    auto = AUTO.get(key, "").split()
    kinds: list[Schema] = [{"enum": [*auto, *component.listing(family)]}, ELSEWHERE]
    absent: list[Schema] = [] if key in DEFAULT_KINDS or auto else [{"type": "null"}]
    default = DEFAULT_KINDS.get(key, AUTO.get(key))
    return {"description": description, "anyOf": [*kinds, {"oneOf": maps}, *absent], "default": default}
