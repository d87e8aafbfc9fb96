"""Data sets of hubs: one split of one, memory-mapped."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from luthier.config import DataFile
from luthier.data.readers._limits import Limits, size_of
from luthier.data.readers.columnar import without_nulls
from luthier.errors import BadRow, EnvironmentProblem, UserError
from luthier.system.progress import Progress
from luthier.system.streams import complain
from luthier.system.words import counted, human_bytes
from luthier.types import Row


def rows(dataset: Any, name: str, limits: Limits, start: int = 0) -> Iterator[Row | BadRow]:
    """The records after the first `start`, numbered from 1; columnar, so nulls inside of maps are absent keys."""
    later = dataset.select(range(start, len(dataset))) if start else dataset
    for number, values in enumerate(later, start=start + 1):
        if (size := size_of(values)) > limits.row_bytes:
            yield limits.row_too_large(f"{name}:{number}", size)
        else:
            yield Row({column: without_nulls(value) for column, value in values.items()}, name, number)


def huggingface(file: DataFile) -> Any:
    """A split of `hf:org/name`, or of a local folder in the layout of the hub.

    Raises:
        UserError: there is no such data set, subset or split.
        EnvironmentProblem: the hub cannot be reached.
    """
    return _load(file, file.path.removeprefix("hf:"), file.revision)


def modelscope(file: DataFile) -> Any:
    """A split of `ms:org/name`. Raises as `huggingface`; the package modelscope is needed."""
    name = file.path.removeprefix("ms:")
    try:
        from modelscope.hub.errors import FileDownloadError, NotExistError, NotLoginException
        from modelscope.hub.snapshot_download import dataset_snapshot_download
    except ImportError:
        fix = "pip install 'luthier[modelscope]'"
        what = "the package modelscope is not installed"
        raise EnvironmentProblem(file.path, what, "it, for data sets of ModelScope", fix) from None
    try:
        folder = dataset_snapshot_download(name, revision=file.revision or "master")
    except (NotExistError, NotLoginException) as error:
        fix = "check the name; modelscope login"
        raise UserError(file.path, _first_line(error), "a data set that ModelScope shows to you", fix) from None
    except (FileDownloadError, OSError, ValueError) as error:
        raise EnvironmentProblem(
            file.path, f"ModelScope cannot be reached: {_first_line(error)}", "a connection, or a local file"
        ) from None
    return _load(file, str(folder), None)


def _load(file: DataFile, name: str, revision: str | None) -> Any:
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        with _without_bars():
            builder = load_dataset_builder(name, file.subset, data_dir=file.data_dir, revision=revision)
            _fetch(file.path, builder.config.data_files or {})
            builder.download_and_prepare()
            return builder.as_dataset(split=file.split)
    except (LocalEntryNotFoundError, HTTPError) as error:
        raise _out_of_reach(file, error.__cause__ or error) from None
    except (DatasetNotFoundError, FileNotFoundError) as error:
        raise UserError(
            file.path,
            f"there is no such data set: {_first_line(error)}",
            "hf:org/name, or a local file without hf:",
            "check the name, and data_dir and revision if they are given",
        ) from None
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise UserError(
            file.path,
            f"is a data set with a script of its own, which is never run: {_first_line(error)}",
            "files of rows",
            "its files as they are: data.train=[{path: FOLDER}], or the parquet files of refs/convert/parquet as revision",
        ) from None
    except (OfflineModeIsEnabled, ConnectionError, HfHubHTTPError) as error:
        raise _out_of_reach(file, error) from None
    except (DatasetsError, ValueError) as error:
        raise UserError(
            file.path,
            f"cannot be read (subset {file.subset}, split {file.split}): {_first_line(error)}",
            "an existing subset and split",
            "the page of the data set lists them",
        ) from None


def _out_of_reach(file: DataFile, error: BaseException) -> EnvironmentProblem:
    return EnvironmentProblem(
        file.path,
        f"the hub cannot be reached: {_first_line(error)}",
        "a connection, or a local file",
        f"{_download_line(file)}, where there is a network",
    )


def _download_line(file: DataFile) -> str:
    """The command that fetches a data set ahead of time."""
    given = {"path": file.path, "subset": file.subset, "data_dir": file.data_dir, "revision": file.revision}
    known = {key: value for key, value in given.items() if value is not None}
    named = file.path if len(known) == 1 else "{" + ", ".join(f"{key}: {value}" for key, value in known.items()) + "}"
    return f"luthier download --data {shlex.quote(named)}"


def _fetch(name: str, data_files: Mapping[Any, Sequence[str]]) -> None:
    """Fetches the files of a hub's data set that are not here yet, and shows how far it is, in files and bytes."""
    from huggingface_hub import HfApi, HfFileSystem, try_to_load_from_cache

    hub = HfFileSystem()
    remote = [url for urls in data_files.values() for url in urls if url.startswith("hf://")]
    wanted = list[tuple[Any, int]]()
    for url in dict.fromkeys(remote):
        at: Any = hub.resolve_path(url)
        here = try_to_load_from_cache(at.repo_id, at.path_in_repo, repo_type=at.repo_type, revision=at.revision)
        if not isinstance(here, str):
            wanted.append((at, hub.info(url)["size"] or 0))
    if not wanted:
        return
    size, done, number = sum(size for _, size in wanted), 0, 0
    complain(f"{name}: downloading {counted(len(wanted), 'file')}, {human_bytes(size)}")
    with Progress() as progress:

        def told(count: float) -> None:
            nonlocal done
            done += int(count)
            what = f"{name}: {number} of {counted(len(wanted), 'file')}, {human_bytes(done)} of {human_bytes(size)}"
            progress(what, min(done / max(size, 1), 1.0))

        for at, _ in wanted:
            kind = {"repo_type": at.repo_type, "revision": at.revision}
            HfApi().hf_hub_download(at.repo_id, at.path_in_repo, **kind, tqdm_class=_told_of(told))
            number += 1
            told(0)


def _told_of(told: Callable[[float], None]) -> Any:
    """A bar of the hub's client that shows nothing and hands on what it is told."""
    from huggingface_hub.utils.tqdm import tqdm

    class Told(tqdm):
        def __init__(self, *args: Any, **keys: Any) -> None:
            del args, keys
            super().__init__(disable=True)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            told(n or 0)

    return Told


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """The bars of the library would be written over ours, and into files."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
