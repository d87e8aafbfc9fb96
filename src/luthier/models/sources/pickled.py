"""Published pickled weights (`pytorch_model*.bin`) become safetensors, once, where a user asks for it.

A pickle can run code when it is opened, so it is opened in a process of its own, by a loader that makes tensors and
nothing else (`pickled_child.py`). What comes of it is held against the architecture before it is put in its place.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from luthier.errors import EnvironmentProblem, UserError, excerpt
from luthier.models.files import refuse_stub
from luthier.models.folder import check_tokenizer, weight_files
from luthier.models.settings import check_config, read_json
from luthier.models.shards import INDEX, SHARD_BYTES, SINGLE
from luthier.system.faults import faults_told, raise_fault
from luthier.system.files import OURS
from luthier.system.secrets import without_secrets
from luthier.system.streams import Say
from luthier.system.words import human_bytes

BIN_INDEX = "pytorch_model.bin.index.json"
BIN_FILES = "pytorch_model*.bin"

_OTHERS = (".json", ".model", ".txt", ".jinja", ".tiktoken")
"""Ends of the names of files that belong to a model beside its weights."""
_CHILD = Path(__file__).with_name("pickled_child.py")
WRITABLE = "a folder with space that may be written"
_AGAIN = "download the model again, or another copy of it"


def has_safetensors(folder: Path) -> bool:
    return (folder / INDEX).is_file() or (folder / SINGLE).is_file()


def convert_folder(source: Path, target: Path, name: str, trust_remote_code: bool, say: Say) -> None:
    """Writes the pickled weights of a folder as safetensors, with progress, and checks them against the architecture:
    names, shapes, and that every number is finite. `target` is left as it was where anything is wrong.

    Args:
        source: holds config.json, the tokenizer and `pytorch_model*.bin`.
        target: gets the safetensors; may be `source`, else the other files are copied there too.

    Raises:
        UserError: a file asks for code, is damaged, or does not fit; names it.
        EnvironmentProblem: no space.
    """
    check_config(source, name, trust_remote_code)
    check_tokenizer(source, name, trust_remote_code)
    files = _files(source, name)
    size = sum(file.stat().st_size for file in files)
    with faults_told(target, WRITABLE):
        target.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f"{OURS}converting-", dir=target))
    try:
        with faults_told(target, WRITABLE):
            if (free := shutil.disk_usage(made).free) < size:
                raise EnvironmentProblem(
                    str(target), f"{human_bytes(size)} to write, {human_bytes(free)} free", "space for the weights"
                )
            say(f"{name}: converting {human_bytes(size)} to safetensors")
            _run(source, made, files, name, say)
            _copy_others(source, made, trust_remote_code)
            _check(made, name, trust_remote_code)
            for file in sorted(
                made.iterdir(), key=lambda file: file.name == INDEX
            ):  # the index last: it makes the model
                if target != source or file.suffix == ".safetensors" or file.name == INDEX:
                    os.replace(file, target / file.name)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _files(folder: Path, name: str) -> list[Path]:
    """The pickled files that make up the model: those of the index, or the single one."""
    if (folder / BIN_INDEX).is_file():
        weight_map = read_json(folder / BIN_INDEX, name).get("weight_map")
        names = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
    else:
        names = sorted(file.name for file in folder.glob(BIN_FILES))
    wrong = [file for file in names if not isinstance(file, str) or not Path(file).match(BIN_FILES) or "/" in file]
    if not names or wrong:
        raise UserError(
            name,
            f"{folder} holds {'a file of weights named ' + excerpt(wrong[0]) if wrong else 'no ' + BIN_FILES}",
            BIN_FILES,
            "--convert is for pickled weights; leave it out for safetensors",
        )
    for file in names:
        if not (folder / file).is_file():
            raise UserError(name, f"{folder / file} is missing", "every file that the index names", _AGAIN)
        refuse_stub(folder / file, name)
    return [folder / file for file in names]


def _run(source: Path, made: Path, files: list[Path], name: str, say: Say) -> None:
    """The other process, whose lines are passed on."""
    command = [sys.executable, "-P", str(_CHILD), str(source), str(made), str(SHARD_BYTES)]
    message: dict[str, Any] = {}
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [*command, *(file.name for file in files)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=without_secrets(),
        ) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            message = json.loads(line)
            if "done" in message:
                say(f"{name}: {message['done'] + 1} of {message['of']}: {message['file']}")
        status = child.wait()
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
    if "refused" in message:
        raise UserError(
            str(source / message["file"]),
            excerpt(message["refused"], 300).strip("'\""),
            "named tensors, and finite",
            _AGAIN,
        )
    if status != 0 or "tensors" not in message:
        raise EnvironmentProblem(
            name,
            f"the process that reads {message.get('file', files[0].name)} ended with status {status}: "
            f"{excerpt(' '.join(last), 200)}",
            "memory for one file of weights",
            "a machine with more memory",
        )


def _copy_others(source: Path, made: Path, trust_remote_code: bool) -> None:
    """config.json, the tokenizer and whatever else is no weights; code where it was asked for."""
    kinds = (*_OTHERS, ".py") if trust_remote_code else _OTHERS
    for file in source.iterdir():
        wanted = file.suffix in kinds and file.name != BIN_INDEX
        if wanted and file.is_file() and not (made / file.name).exists():
            shutil.copyfile(file, made / file.name)


def _check(folder: Path, name: str, trust_remote_code: bool) -> None:
    """Whether the weights are those of the architecture, by loading them without their data."""
    from transformers import AutoModelForCausalLM

    from luthier.models.load import quiet, refuse_misfits
    from luthier.models.reading import load_config

    weight_files(folder, name)
    try:
        with quiet():
            _, report = AutoModelForCausalLM.from_pretrained(
                folder,
                config=load_config(folder, trust_remote_code),
                device_map={"": "meta"},
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise_fault(name, error)
        raise UserError(
            name, f"transformers cannot use it: {excerpt(str(error), 300)}", "a causal language model", _AGAIN
        ) from error
    refuse_misfits(report, name)
