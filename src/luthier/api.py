"""luthier from Python: `run = luthier.train(model=..., data=[...])`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import config
from luthier.config import DataFile, RunConfig
from luthier.config.documents import Document, read_yaml
from luthier.config.plain_yaml import OF_A_RUN
from luthier.errors import UserError, excerpt
from luthier.reporting.run.loss_curves import loss_curve
from luthier.runs import chain
from luthier.runs.figures import read_figures
from luthier.runs.recorder import read_lines
from luthier.runs.run_folder import CONFIG, METRICS, REPORT
from luthier.system import streams
from luthier.system.files import MANIFEST, write_file
from luthier.system.floors import check_address_space, check_floors
from luthier.system.paths import cache_dir, cache_written
from luthier.system.words import counted

if TYPE_CHECKING:
    from luthier.inference.opened import Opened

RUNS = Path("runs")


def train(
    model: str | Mapping[str, Any], data: Any, *, resume: bool = False, trust_remote_code: bool = False, **keys: Any
) -> Run:
    """Fine-tunes a model, as `luthier train` does.

    Args:
        model: as the key `model` of a configuration.
        data: a path, paths, the map of the key `data`, or the rows themselves as a list of dicts.
        resume: go on from the last checkpoint of `output_dir`.
        trust_remote_code: run Python code that comes with the model.
        keys: other keys of a configuration: whole sections (`tuning="full"`), or unique names (`learning_rate=1e-4`);
            dotted ones as `**{"training.learning_rate": 1e-4}`. `output_dir` is by default the next free `runs/NNN`.

    Raises:
        UserError: the configuration or the data are wrong.
        EnvironmentProblem: the machine cannot do it.
    """
    return train_from(make_config(model, data, keys), resume=resume, trust_remote_code=trust_remote_code)


def train_from(
    checked: RunConfig,
    *,
    resume: bool = False,
    trust_remote_code: bool = False,
    say: Callable[[str], None] | None = None,
) -> Run:
    """Fine-tunes as a configuration says, and makes the report of the run.

    Args:
        say: gets each line for the person who watches; default: the screen.

    Raises:
        UserError, EnvironmentProblem, NonFinite, Stopped: as `luthier.training.run.execute`.
    """
    check_floors()
    check_address_space()
    from luthier.reporting.run.page import write_report
    from luthier.reporting.run.summary import end_summary
    from luthier.system.devices import is_main_process
    from luthier.training import run

    place = Path(checked.output_dir)
    before = _last_noted(place)
    folder = run.execute(checked, resume=resume, trust_remote_code=trust_remote_code, say=say)
    if is_main_process() and (_last_noted(place) != before or not (place / REPORT).is_file()):
        write_report(folder)
        (say or streams.say)(end_summary(folder))
    return Run(folder, trust_remote_code)


def _last_noted(folder: Path) -> int | None:
    """When a run noted its state last, in nanoseconds: a run that was finished already is not touched."""
    manifest = folder / MANIFEST
    return manifest.stat().st_mtime_ns if manifest.is_file() else None


class Run:
    """The folder of a run. Everything is read from its files when asked for.

    Raises:
        UserError: the folder holds no run.
    """

    def __init__(self, folder: str | Path, trust_remote_code: bool = False) -> None:
        self.folder = Path(folder)
        self.trust_remote_code = trust_remote_code
        if not (self.folder / CONFIG).is_file():
            raise UserError(
                str(self.folder), "there is no config.yaml", "the folder of a run", "luthier runs lists them"
            )

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: one a step, and one an evaluation."""
        return read_lines(self.folder / METRICS)

    @property
    def report(self) -> Path:
        """The self-contained report; a file to open in a browser."""
        return self.folder / REPORT

    @cached_property
    def config(self) -> RunConfig:
        """As resolved at the start."""
        return config.build(read_yaml(self.folder / CONFIG, OF_A_RUN))

    @cached_property
    def opened(self) -> Opened:
        """The tuned model, loaded at the first use and kept."""
        from luthier.inference.opened import open_model

        return open_model(str(self.folder), trust_remote_code=self.trust_remote_code)

    def chat(
        self,
        text: str,
        *,
        system: str | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 512,
        seed: int = 0,
    ) -> str:
        """One answer of the tuned model. Raises UserError where `text` leaves no room for it."""
        from luthier.inference.chat import Chat, Settings

        return Chat(self.opened, system, Settings(temperature, top_p, max_new_tokens, seed)).say(text).text

    def __repr__(self) -> str:
        losses = [line["loss"] for line in self.metrics if line.get("loss") is not None]
        course = f", {counted(len(losses), 'step')}, loss {losses[0]:.4g} to {losses[-1]:.4g}" if losses else ""
        return f"Run({str(self.folder)!r}{course})"

    def _repr_html_(self) -> str:
        """The loss curve, for notebooks."""
        return loss_curve(read_figures(self.folder))


def make_config(model: str | Mapping[str, Any], data: Any, keys: Mapping[str, Any]) -> RunConfig:
    """The configuration of the arguments of `train`, under the same checks as the command line's."""
    document = Document({"model": _plain(model, "model"), "data": _plain(_with_rows_in_files(data), "data")}, "train()")
    document.tree["output_dir"] = keys["output_dir"] if "output_dir" in keys else _next_free()
    document.tree["output_dir"] = str(document.tree["output_dir"])
    top = {key: value for key, value in keys.items() if key in RunConfig.model_fields and key != "output_dir"}
    for key, value in top.items():
        document.set([key], _plain(value, key))
    # JSON is YAML, so a value takes the way of the command line, with its checks
    others = {key: _plain(value, key) for key, value in keys.items() if key not in RunConfig.model_fields}
    found = config.assemble(
        document, [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in others.items()]
    )
    return chain.going_on(found)


def _plain(value: Any, name: str) -> Any:
    """Paths and tuples as YAML has them; refuses what a configuration cannot hold."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item, name) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, name) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError("train()", f"{name} is {excerpt(value)}", "text, a number, True or False, a list or a dict")


def _with_rows_in_files(data: Any) -> Any:
    """`data` with lists of rows replaced by the file that holds them."""
    if isinstance(data, Mapping):
        return {key: _with_rows_in_files(value) if key in ("train", "eval") else value for key, value in data.items()}
    if isinstance(data, Sequence) and not isinstance(data, str) and data and all(_is_row(item) for item in data):
        return str(_rows_file(data))
    return data


def _is_row(item: Any) -> bool:
    """A dict that is no `{"path": ..., "format": ...}`."""
    return isinstance(item, Mapping) and not ("path" in item and item.keys() <= set(DataFile.model_fields))


def _rows_file(rows: Sequence[Mapping[str, Any]]) -> Path:
    """A JSONL file of the rows, named by what it says, so that the same rows are the same data."""
    try:
        text = "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
    except (TypeError, ValueError) as error:
        raise UserError(
            "train()", f"a row of data cannot be written as JSON: {error}", "dicts of text, numbers, lists and dicts"
        ) from None
    raw = text.encode("utf-8", errors="backslashreplace")
    path = cache_dir() / "inline" / f"{hashlib.sha256(raw).hexdigest()[:32]}.jsonl"
    if not path.is_file():
        with cache_written(path):
            path.parent.mkdir(exist_ok=True)
            write_file(path, raw)
    return path


def _next_free() -> Path:
    numbers = [int(path.name) for path in RUNS.glob("*") if path.name.isdigit()] if RUNS.is_dir() else []
    return RUNS / f"{max(numbers, default=0) + 1:03d}"
