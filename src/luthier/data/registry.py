"""LLaMA-Factory's `dataset_info.json`, read as it is: names, and for each where its rows are and what they mean.

Its rules, the surprising ones included:

- A hub's data set goes before a file: `hf_hub_url`, else `ms_hub_url`; then `file_name`, a file or a folder beside the
  registry. `file_sha1` is not looked at (the content is hashed anyway).
- `formatting` is `alpaca` unless it says `sharegpt` or `openai`.
- Where `columns` is given, a column that it does not list is not read, its default name notwithstanding; likewise `tags`:
  a role without a tag does not occur. A `system` or `history` column is read only where it is listed.
- `ranking: true` makes pairs of `chosen` and `rejected`; `kto_tag` makes feedback. `num_samples` draws rows, and where there
  are fewer takes them more than once.
- An alpaca entry without `response` is text for an objective that learns from text (`prompt` names it), and a prompt for
  one that learns from the model's own answers. An objective that takes text alone reads `prompt` of any alpaca entry.

What is different here, on purpose:

- Rows that LLaMA-Factory drops with a warning (a wrong role, an odd number of turns, an empty answer) are errors that name
  each row, unless `on_bad_row: drop` is written; then they are counted and kept in `rejected.jsonl`.
- Keys, columns and tags that it does not know are errors, because it passes over them in silence.
- `openai` entries without `tags` read `role` and `content` (there they end with a KeyError), results of several tools stay
  several messages, and no sentence about thinking is put into system texts.
- Rows that `num_samples` takes twice are spread evenly: none is taken three times before all are taken twice.
- Data sets that are programs (`script_url`), lie in a cloud store or on openMind, or hold pictures, films or sounds, are
  refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier import component
from luthier.component import ComponentConfig, did_you_mean, nearest
from luthier.config import DataFile
from luthier.errors import EnvironmentProblem, UserError, excerpt
from luthier.formats import MEDIA
from luthier.system import strict_json
from luthier.types import Conversation, Prompt, Text

FILE_NAME = "dataset_info.json"
MOST_BYTES = 64 << 20
LONGEST_KEY = 60
FIRST_ENTRY = '{"name": {"file_name": "a.json"}}'
FEW_NAMES = 5
"""So many are all listed."""

COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
COLUMNS |= dict.fromkeys(
    ("history", "system", "tools", "chosen", "rejected", "kto_tag", "images", "videos", "audios"), ""
)
"""The columns of an entry and their names where it lists none; '' is not read."""

TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
API_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function",
    "system_tag": "system",
}
MEANINGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "tool_call",
    "system_tag": "system",
}

HUBS = {"hf_hub_url": "hf:", "ms_hub_url": "ms:"}
ELSEWHERE = {
    "om_hub_url": "a data set of openMind",
    "script_url": "a data set that is a program, which is not run",
    "cloud_file_name": "a file in a cloud store",
}
KEYS = {
    *HUBS,
    *ELSEWHERE,
    "file_name",
    "file_sha1",
    "formatting",
    "ranking",
    "subset",
    "split",
    "folder",
    "num_samples",
}
KEYS |= {"columns", "tags"}


def from_registry(registry: str, file: DataFile, takes: Sequence[type], key: str) -> DataFile:
    """The entry that `file.path` names, as a file of a configuration. What `file` says itself goes before the entry.

    Args:
        takes: the types of example that the objective can learn from.

    Raises:
        UserError: the registry or the entry is wrong, or there is no such entry.
        EnvironmentProblem: the registry cannot be read.
    """
    path = Path(registry)
    path = path / FILE_NAME if path.is_dir() else path
    entries = read_registry(path)
    if file.path not in entries:
        names = list(entries)
        near = " or ".join(f'"{name}"' for name in nearest(file.path, names))
        few = f"one of {', '.join(names)}" if len(names) <= FEW_NAMES else f"one of its {len(names):,} names"
        fix = f"add it to {path}, or leave data.registry out and name files"
        fix = f"did you mean {near}? Or {fix}" if near else fix
        raise UserError(f"{key}: {file.path}", f"{path} has no such name", few, fix)
    entry = _Entry(f"{path}: {file.path}", entries[file.path])
    given = file.model_dump(exclude_unset=True, exclude={"path", "format"})
    values = {"split": entry.text("split") or "train", "subset": entry.text("subset"), "data_dir": entry.text("folder")}
    with _values_named(entry.place):
        chosen = file.format if file.format != "auto" else entry.format(takes)
        return DataFile(
            path=entry.place_of_rows(path.parent),
            format=chosen,
            **{**values, "num_samples": entry.number("num_samples"), **given},
        )


@contextmanager
def _values_named(place: str) -> Iterator[None]:
    """A value that a configuration would not take either is a UserError that names it."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            place, f"{key} is {excerpt(first['input'])}", first["msg"].removeprefix("Value error, "), f"mend {key}"
        ) from None


def read_registry(path: Path) -> dict[str, Any]:
    """The entries by their names. Raises UserError where the file is no such registry."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"data.registry: {path}", "this is no ordinary file", f"a {FILE_NAME}", f"data.registry=PATH/{FILE_NAME}")
        if (size := path.stat().st_size) > MOST_BYTES:
            found, most = f"a file of {size:,} bytes", f"a {FILE_NAME}, at most {MOST_BYTES:,} bytes"
            raise UserError(f"data.registry: {path}", found, most, f"data.registry=PATH/{FILE_NAME} of the list, not of the data")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"data.registry: {path}",
            "there is no such file",
            f"a {FILE_NAME}, or the folder that holds one",
            f"data.registry=PATH/{FILE_NAME}; or leave registry out, and data.train=FILE names the rows themselves",
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"data.registry: {path}", f"byte {error.start} is not UTF-8", "a text file in UTF-8", "save it as UTF-8"
        ) from None
    except OSError as error:
        raise EnvironmentProblem(
            f"data.registry: {path}", f"cannot be read: {error.strerror}", "a readable file"
        ) from None
    try:
        entries = strict_json.parse(text)
    except ValueError as error:
        line = getattr(error, "lineno", None)
        where = f"data.registry: {path}:{line}" if line else f"data.registry: {path}"
        raise UserError(
            where, f"broken JSON: {strict_json.reason(error)}", "a JSON map of entries", "mend the line"
        ) from None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise UserError(f"data.registry: {path}", "this is no map of entries", "a map of names to entries", FIRST_ENTRY)
    return entries


class _Entry:
    """One entry, and the place that names it in errors."""

    def __init__(self, place: str, values: Mapping[str, Any]) -> None:
        self.place = place
        self.values = values
        self._refuse_unknown(values, KEYS, "")
        self.columns = self._names("columns", COLUMNS)
        self.openai = self._formatting() == "openai"
        self.tags = self._names("tags", API_TAGS if self.openai else TAGS)

    def _refuse_unknown(self, values: Mapping[str, Any], known: set[str], section: str) -> None:
        for key in values:
            if key not in known:
                fix = did_you_mean(key, sorted(known)) or f"leave {key[:LONGEST_KEY]} out"
                raise UserError(
                    self.place,
                    f"{section}{key[:LONGEST_KEY]} is no key of a registry",
                    "one of " + ", ".join(sorted(known)),
                    fix,
                )

    def _names(self, section: str, usual: Mapping[str, str]) -> dict[str, str | None]:
        """The names of a section; where it is given, what it does not list is None."""
        given = self.values.get(section)
        if given is None:
            return {key: name or None for key, name in usual.items()}
        if not isinstance(given, Mapping) or not all(isinstance(name, str) and name for name in given.values()):
            raise UserError(self.place, f"{section} is {excerpt(given)}", f"a map of {', '.join(usual)} to names")
        self._refuse_unknown(given, set(usual), f"{section}.")
        return {key: given.get(key) for key in usual}

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and (not isinstance(value, str) or not value):
            raise UserError(self.place, f"{key} is {excerpt(value)}", "text", f'"{key}": "..."')
        return value

    def number(self, key: str) -> int | None:
        value = self.values.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UserError(self.place, f"{key} is {excerpt(value)}", "a whole number above 0", f'"{key}": 1000')
        return value

    def place_of_rows(self, folder: Path) -> str:
        """What a file's `path` says: a hub's data set, or a file or folder beside the registry. Raises UserError."""
        for key, prefix in HUBS.items():
            if name := self.text(key):
                return prefix + name
        for key, what in ELSEWHERE.items():
            if self.text(key):
                raise UserError(
                    self.place, f"{key}: {what}", "hf_hub_url, ms_hub_url or file_name", "fetch it as a file"
                )
        if name := self.text("file_name"):
            return str(folder / name)
        raise UserError(self.place, "it says nowhere where its rows are", "hf_hub_url, ms_hub_url or file_name")

    def _formatting(self) -> str:
        formatting = self.text("formatting") or "alpaca"
        if formatting not in ("alpaca", "sharegpt", "openai"):
            raise UserError(
                self.place, f"formatting is {excerpt(formatting)}", "alpaca, sharegpt or openai", "leave it out"
            )
        return formatting

    def format(self, takes: Sequence[type]) -> ComponentConfig:
        """The format of its rows, with all names. Raises UserError."""
        for name in sorted(MEDIA & self.columns.keys()):
            if self.columns[name]:
                raise UserError(
                    self.place, f"columns.{name}", "data of text alone: nothing else is learned from", "another"
                )
        ranking = self.values.get("ranking", False)
        if not isinstance(ranking, bool):
            raise UserError(self.place, f"ranking is {excerpt(ranking)}", "true or false", '"ranking": true')
        if ranking:
            chosen, rejected = self._column("chosen"), self._column("rejected")
            return _config("preference", **self._request(), chosen=chosen, rejected=rejected, answers=None)
        if self.columns["kto_tag"]:
            answer = {"completion": self._column("response")} if self._formatting() == "alpaca" else {}
            return _config("feedback", **self._request(), **answer, label=self.columns["kto_tag"])
        if self._formatting() != "alpaca":
            return self._chat()
        if Conversation in takes and self.columns["response"]:
            common = {key: self.columns[key] for key in ("system", "history", "tools")}
            return _config("alpaca", **self._prompt("instruction"), output=self.columns["response"], **common)
        if Prompt in takes and Text not in takes:
            return _config("prompts", **self._request())
        return _config("text", text=self._column("prompt"))

    def _chat(self) -> ComponentConfig:
        role, content, roles = self._tags()
        common = {"roles": roles, "system": self.columns["system"], "tools": self.columns["tools"]}
        if self.openai:
            return _config("messages", messages=self._column("messages"), role=role, content=content, **common)
        return _config("sharegpt", conversations=self._column("messages"), **{"from": role}, value=content, **common)

    def _request(self) -> dict[str, Any]:
        """The keys of what is asked, for formats in which answers stand apart."""
        common = {"system": self.columns["system"], "tools": self.columns["tools"]}
        if self._formatting() == "alpaca":
            return {**self._prompt("prompt"), "history": self.columns["history"], **common}
        role, content, roles = self._tags()
        return {"prompt": self._column("messages"), "role": role, "content": content, "roles": roles, **common}

    def _prompt(self, name: str) -> dict[str, str | None]:
        """The request's column as `name`, and the column that follows it; `query` may stand alone."""
        if self.columns["prompt"] is None and self.columns["query"]:
            return {name: self.columns["query"], "input": None}
        return {name: self._column("prompt"), "input": self.columns["query"]}

    def _tags(self) -> tuple[str, str, dict[str, str]]:
        """Key of the role, key of the text, and what the names of roles mean. Raises UserError."""
        for tag in ("role_tag", "content_tag"):
            if self.tags[tag] is None:
                fix = f'"{tag}": "{(API_TAGS if self.openai else TAGS)[tag]}"'
                raise UserError(self.place, f"tags lists no {tag}", "all tags that occur, where tags is given", fix)
        roles = {name: MEANINGS[tag] for tag, name in self.tags.items() if tag in MEANINGS and name is not None}
        return str(self.tags["role_tag"]), str(self.tags["content_tag"]), roles

    def _column(self, name: str) -> str:
        if (column := self.columns[name]) is None:
            wrong = f"columns lists no {name}" if "columns" in self.values else f"there is no columns.{name}"
            expected = f"the column of {name}; where columns is given, what it does not list is not read"
            raise UserError(self.place, wrong, expected, f'"columns": {{"{name}": "..."}}')
        return column


def _config(kind: str, **keys: Any) -> ComponentConfig:
    config: ComponentConfig = component.load("formats", kind).Config(kind=kind, **keys)
    return config
