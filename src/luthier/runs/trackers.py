"""Experiment trackers, through accelerate's classes: one interface to all, and none of them knows of luthier."""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import EnvironmentProblem
from luthier.runs.run_folder import GOES_ON, TRACKERS
from luthier.system.faults import faults_told
from luthier.system.files import as_json, write_file
from luthier.system.secrets import redacted

if TYPE_CHECKING:
    from luthier.config import RunConfig

PROJECT = "luthier"
"""The project (experiment) of a tracker under which runs are found; a run has the name of its folder."""

PACKAGES = {"mlflow": ("mlflow-skinny", "sqlalchemy", "alembic")}
"""What a tracker is installed by, where that is not its name; the module always has it."""

WANDB_FIX = "wandb login, or WANDB_MODE=offline before the command"
LOCAL_MODES = ("offline", "disabled", "dryrun")
"""Of wandb: no account is needed."""

MLFLOW_FILE = "mlflow.db"


def check_trackers(names: Sequence[str]) -> None:
    """Refuses trackers whose package is missing, before anything is loaded.

    Raises:
        EnvironmentProblem: with the line that installs them.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        packages = [package for name in missing for package in PACKAGES.get(name, (name,))]
        found = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed here"
        fix = f"pip install {' '.join(packages)}, or leave it out of report_to"
        raise EnvironmentProblem("report_to", found, "the trackers that it names", fix)


def check_logins(names: Sequence[str]) -> None:
    """Refuses a tracker that wants an account where nobody is logged in, before anything heavy is imported. Asks no server.

    Raises:
        EnvironmentProblem: with the line that logs in.
    """
    if "wandb" not in names:
        return
    import wandb

    if "prompt" not in inspect.signature(wandb.login).parameters:  # an older one can only be asked by starting it
        return
    try:
        known = wandb.setup().settings.mode in LOCAL_MODES or wandb.login(prompt=False, verify=False)
    except _failures("wandb") as error:
        raise _not_started("wandb", _first_line(error)) from None
    if not known:
        raise _not_started("wandb", "nobody is logged in")


def _not_started(name: str, why: str) -> EnvironmentProblem:
    fix = WANDB_FIX if name == "wandb" else f"leave {name} out of report_to"
    return EnvironmentProblem(f"report_to: {name}", f"it did not start: {why}", "", fix)


def tracked_step(line: Mapping[str, Any], timing: Mapping[str, Any]) -> dict[str, float]:
    """A step under the names that trackers group by: train/loss ..., speed/tokens_per_s ..."""
    return _numbers({f"train/{key}": value for key, value in line.items() if key != "step"}) | _numbers(
        {f"speed/{key}": value for key, value in timing.items() if key != "step"}
    )


def tracked_evaluation(line: Mapping[str, Any]) -> dict[str, float]:
    """An evaluation as eval/loss, eval/perplexity ..."""
    return _numbers({f"eval/{key.removeprefix('eval_')}": value for key, value in line.items() if key != "step"})


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: value for key, value in values.items() if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


class Trackers:
    """All trackers of a run. Only the main process has one.

    Args:
        folder: the run's folder; trackers that write files do so below it, unless the user's own settings differ.
        config: its `report_to` says which, and it is stored with each.
        start_step: steps that a resumed run has behind it.
        on_failure: told when a tracker fails on the way. It is then left out: the run and its own files go on.

    Raises:
        EnvironmentProblem: a package is missing, or a tracker does not start (no account, no server).
    """

    def __init__(
        self, folder: Path, config: RunConfig, *, start_step: int = 0, on_failure: Callable[[str], None] = print
    ) -> None:
        self._trackers: dict[str, Any] = {}
        self._on_failure = on_failure
        if not config.report_to:
            return
        check_trackers(config.report_to)
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        ids = _read_ids(folder) if start_step else {}
        for name in config.report_to:
            with _one_process():
                tracker = LOGGER_TYPE_TO_CLASS[name](
                    *_arguments(name, folder), **_options(name, folder, start_step, ids)
                )
                _start(name, tracker)
                self._trackers[name] = tracker
                _store_config(name, tracker, config, resumed=name in ids)
            ids[name] = _id(name, tracker)
        # The name that each tracker gave the run: a resumed run goes on there and does not begin a second one.
        with faults_told(folder / TRACKERS, *GOES_ON):
            write_file(folder / TRACKERS, as_json(ids))

    def step(self, line: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """A step's figures."""
        self._log(tracked_step(line, timing), line["step"])

    def evaluation(self, line: Mapping[str, Any]) -> None:
        """An evaluation's figures."""
        self._log(tracked_evaluation(line), line["step"])

    def close(self) -> None:
        """Ends each tracker; what it has is on disk or sent afterwards."""
        self._each(lambda tracker: tracker.finish())
        self._trackers = {}

    def _log(self, values: dict[str, float], step: int) -> None:
        self._each(lambda tracker: tracker.log(values, step=step))

    def _each(self, action: Callable[[Any], object]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                with _one_process():
                    action(tracker)
            except _failures(name) as error:
                del self._trackers[name]
                self._on_failure(f"{name} failed and gets nothing more: {_first_line(error)}")


def _arguments(name: str, folder: Path) -> tuple[str, ...]:
    """The positional arguments of accelerate's class: the project, and where a folder is required, the folder."""
    if name == "tensorboard":
        return "", str(folder / "tensorboard")
    return (PROJECT, str(folder)) if name == "aim" else (PROJECT,)


def _options(name: str, folder: Path, start_step: int, ids: Mapping[str, str]) -> dict[str, Any]:
    """What each tracker is started with beside the project.

    What a user sets by the tracker's own variables (mode, server, account) is left to the tracker.
    """
    run, known = folder.resolve().name, ids.get(name)
    if name == "tensorboard":  # hides what a killed run logged after the checkpoint that it is resumed from
        return {"purge_step": start_step + 1} if start_step else {}
    if name == "wandb":
        return {"name": run, "dir": str(folder), **({"id": known, "resume": "allow"} if known else {})}
    if name == "mlflow":
        _mlflow_store(folder)
        return {"run_name": run, "run_id": known}
    if name == "trackio":
        return {"name": run, "resume": "allow" if start_step else "never", "embed": False}
    if name == "swanlab":
        return {"experiment_name": run, "logdir": str(folder / "swanlog")}
    return {}


def _start(name: str, tracker: Any) -> None:
    try:
        tracker.start()
    except _failures(name) as error:
        raise _not_started(name, _first_line(error)) from None


def _failures(name: str) -> tuple[type[Exception], ...]:
    """What a tracker raises where its server, account or disk fails; anything else is a fault of ours."""
    if name == "wandb":
        from wandb.errors import Error

        return OSError, Error
    if name == "mlflow":
        from mlflow.exceptions import MlflowException

        return OSError, MlflowException
    return (OSError,)


def _first_line(error: Exception) -> str:
    return redacted((str(error).strip() or type(error).__name__).splitlines()[0])


def _store_config(name: str, tracker: Any, config: RunConfig, *, resumed: bool) -> None:
    """The configuration as the tracker's hyperparameters."""
    if name == "tensorboard":  # its own way of hyperparameters writes a second run beside this one
        tracker.tracker.add_text("config", f"```yaml\n{config.resolved_yaml()}```", 0)
    elif not (resumed and name == "mlflow"):  # which refuses a parameter that has changed, such as more steps
        tracker.store_init_configuration(_flat(config.model_dump(mode="json")))


def _id(name: str, tracker: Any) -> str:
    """The name by which a tracker can find the run again."""
    if name == "mlflow":
        return str(tracker.tracker.info.run_id)
    return str(getattr(tracker.tracker, "id", ""))


def _read_ids(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / TRACKERS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: known for name, known in found.items() if known} if isinstance(found, dict) else {}


def _mlflow_store(folder: Path) -> None:
    """A database in the run's folder, unless the user has chosen a store or a server."""
    import mlflow

    if not mlflow.is_tracking_uri_set():
        mlflow.set_tracking_uri(f"sqlite:///{(folder / MLFLOW_FILE).resolve()}")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """`{"training": {"seed": 0}}` as `{"training.seed": 0}`; lists and null as text."""
    out: dict[str, str | int | float | bool] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value if isinstance(value, (str, int, float, bool)) else str(value)
    return out


@contextmanager
def _one_process() -> Iterator[None]:
    """Within it accelerate's trackers find a state of one process.

    They ask `PartialState()` on every call, and making one sets thread counts and variables and may start a process
    group: that is the engine's to decide. Only the main process has trackers, so one process is the truth as far as
    they are concerned. Where the caller has a state already, that one is used.
    """
    import torch
    from accelerate.state import DistributedType, PartialState

    shared = PartialState._shared_state
    if shared:
        yield
        return
    shared.update(
        {
            "_cpu": True,
            "backend": None,
            "device": torch.device("cpu"),
            "debug": False,
            "fork_launched": False,
            "distributed_type": DistributedType.NO,
            "num_processes": 1,
            "process_index": 0,
            "local_process_index": 0,
        }
    )
    try:
        yield
    finally:
        shared.clear()
