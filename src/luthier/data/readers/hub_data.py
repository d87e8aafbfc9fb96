"""Data sets of hubs: one split of one, memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from luthier.config import DataFile
from luthier.data.readers._limits import Limits, size_of
from luthier.data.readers.columnar import without_nulls
from luthier.errors import BadRow, EnvironmentProblem, UserError
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
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return load_dataset(name, file.subset, data_dir=file.data_dir, split=file.split, revision=revision)
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
        raise EnvironmentProblem(
            file.path,
            f"the hub cannot be reached: {_first_line(error)}",
            "a connection, or a local file",
            "luthier download fetches ahead of time",
        ) from None
    except (DatasetsError, ValueError) as error:
        raise UserError(
            file.path,
            f"cannot be read (subset {file.subset}, split {file.split}): {_first_line(error)}",
            "an existing subset and split",
            "the page of the data set lists them",
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
