"""What the data sets of another tool's configuration become: files, data sets of a hub, and how their rows are read.

A key of an entry that nothing here does the same as stops the translation: left out, it would be another data set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from luthier.config.answers import Answer, as_value
from luthier.config.other_tools import REGISTERED

ON_A_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+")
PACKED = (".gz", ".zst", ".bz2", ".xz")
KINDS = {
    "json": (".json", ".jsonl", ".ndjson"),
    "csv": (".csv", ".tsv"),
    "text": (".txt",),
    "parquet": (".parquet",),
    "arrow": (".arrow",),
}
"""What axolotl and datasets call a kind of file, in the place of a path too; here the ending says it."""
ENDINGS = (*(ending for endings in KINDS.values() for ending in endings), *PACKED)
MEANINGS = ("system", "user", "assistant", "tool")
OURS = ("format", "subset", "data_dir", "weight", "num_samples")
"""Keys of an entry that no other tool has there: written by somebody who was halfway."""
SAME_HERE = {"roles_to_train": ["assistant"], "train_on_eos": "turn"}
"""Keys of an entry that say what is done here in any case."""

Given = Callable[[str], Any]
"""The value of another key of the same configuration; None where it is not there."""


def files(value: Any, given: Given, hub: bool = False) -> Answer:
    """Names of a registry, or of data sets of a hub, or files."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    entries, lost = list[dict[str, Any]](), list[str]()
    for part in parts:
        if isinstance(part, Mapping):
            entry = _Entry(part, hub)
            found = entry.made()
            lost += entry.left()
        else:
            found = [{"path": _named(str(part or "").strip(), hub)}]
        for name, keys in (
            ("subset", ("dataset_config", "dataset_config_name")),
            ("split", ("dataset_train_split",)),
        ):
            if hub and (said := next(filter(None, map(given, keys)), None)):
                found = [{name: said, **one} for one in found]
        entries += [{"path": one.pop("path"), **one} for one in found]
    if lost:
        return Answer(says=f"nothing here does the same as {'; '.join(dict.fromkeys(lost))}", stops=True)
    written = [one if len(one) > 1 else one["path"] for one in entries]
    sets: dict[str, Any] = {"data.train": written[0] if len(written) == 1 else written}
    paths = [one["path"] for one in entries]
    if not hub and given("dataset_dir") is None and all("." not in path and "/" not in path for path in paths):
        return Answer({**sets, "data.registry": REGISTERED}, f"{REGISTERED}: the folder with dataset_info.json")
    return Answer(sets)


def of_hub(value: Any, given: Given) -> Answer:
    return files(value, given, hub=True)


def beside(_: Any, given: Given) -> Answer:
    """What the entry of the data set has said already."""
    if given("dataset_name") is not None or given("datasets") is not None:
        return Answer(says="it stands in the entry of data.train; leave it out")
    return Answer(says="write it into the entry of data.train: {path: FILE, subset: ..., split: ...}")


def _named(path: str, hub: bool) -> str:
    return f"hf:{path}" if hub and _is_of_hub(path) else path


def _is_of_hub(path: str) -> bool:
    return ON_A_HUB.fullmatch(path) is not None and not path.endswith(ENDINGS)


def _kind(path: str) -> str | None:
    """What the ending of a file says that it is."""
    for packed in PACKED:
        path = path.removesuffix(packed)
    return next((kind for kind, endings in KINDS.items() if path.endswith(endings)), None)


class _Entry:
    """A map that stands for a data set; what is read of it is taken out, and the rest has no counterpart."""

    def __init__(self, entry: Mapping[Any, Any], hub: bool) -> None:
        self._hub = hub
        self._rest = {key: value for key, value in entry.items() if value is not None and SAME_HERE.get(key) != value}

    def left(self) -> list[str]:
        """`key: value` of each key that nothing was made of."""
        return [f"{key}: {as_value(value)}" for key, value in self._rest.items()]

    def made(self) -> list[dict[str, Any]]:
        """Entries of ours: one, or one for each of several files."""
        path = str(self._rest.get("path") or "").strip()
        common = self._format() | {key: self._rest.pop(key) for key in OURS if key in self._rest}
        if self._hub and _is_of_hub(path):
            for name, ours in (("name", "subset"), ("split", "split"), ("revision", "revision")):
                if isinstance(self._rest.get(name), str):
                    common[ours] = self._rest.pop(name)
            self._rest.pop("path")
            return [{"path": f"hf:{path}", **common}]
        if self._rest.get("split") == "train":  # all that a file has
            del self._rest["split"]
        paths, kind = [path], self._rest.get("ds_type")
        if path in KINDS and self._rest.get("data_files"):
            said = self._rest["data_files"]
            paths, kind = [said] if isinstance(said, str) else said, path
            if not isinstance(paths, (list, tuple)) or not all(isinstance(one, str) for one in paths):
                return []
        if any("://" in one for one in paths) or (kind is not None and any(_kind(one) != kind for one in paths)):
            return []
        self._rest.pop("ds_type", None)
        if path not in KINDS:
            self._rest.pop("path", None)
        elif "data_files" in self._rest:
            del self._rest["path"], self._rest["data_files"]
        return [{"path": one, **common} for one in paths]

    def _format(self) -> dict[str, Any]:
        """How the rows are read, where the entry says it."""
        kind = self._rest.get("type")
        if kind in ("alpaca", "sharegpt"):
            del self._rest["type"]
            return {"format": kind}
        if kind == "completion":
            del self._rest["type"]
            column = self._rest.pop("field", "text")
            return {"format": "text" if column == "text" else {"kind": "text", "text": column}}
        return self._of_messages() if kind == "chat_template" else {}

    def _of_messages(self) -> dict[str, Any]:
        del self._rest["type"]
        column = self._rest.pop("field_messages", "messages")
        names = {"role": "role", "content": "content"}
        given = self._rest.get("message_property_mappings")
        if isinstance(given, Mapping) and given.keys() <= names.keys():
            names |= self._rest.pop("message_property_mappings")
        for name in names:
            names[name] = self._rest.pop(f"message_field_{name}", names[name])
        if names == {"role": "from", "content": "value"}:
            keys, made = ("sharegpt", "conversations"), dict[str, Any]()
        else:
            keys, made = ("messages", "messages"), {name: said for name, said in names.items() if said != name}
        if column != keys[1]:
            made[keys[1]] = column
        if roles := self._roles():
            made["roles"] = roles
        return {"format": {"kind": keys[0], **made} if made else keys[0]}

    def _roles(self) -> dict[str, str]:
        """Names of roles and what each means; there the meaning has a list of names."""
        said = self._rest.get("roles")
        if not isinstance(said, Mapping) or not said.keys() <= set(MEANINGS):
            return {}
        if not all(isinstance(names, list) for names in said.values()):
            return {}
        del self._rest["roles"]
        return {str(name): meaning for meaning, names in said.items() for name in names}
