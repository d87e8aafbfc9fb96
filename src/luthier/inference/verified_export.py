"""From a run to a folder that others can use: written aside, read back, compared, and only then named. A whole model's
prompts are compared with those of another engine as well (`inference/served.py`).

What an export writes and how it is read back is the component's own (`export/`).
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from pydantic import ValidationError

from luthier import component
from luthier.component import ComponentConfig
from luthier.data.chat.default_system import with_default_system
from luthier.data.chat.renderer import ChatRenderer
from luthier.errors import EnvironmentProblem, LuthierError, UserError, excerpt
from luthier.export._parts import Parts
from luthier.inference import served
from luthier.inference.as_typed import refuse_used
from luthier.inference.drift import Drift, ScoreDrift, drift, refuse_lost, score_drift
from luthier.inference.opened import Base, Opened, base_dtype, open_model
from luthier.inference.questions import held_out_rows
from luthier.models.adapters import adapter_hash, begins, origin_of, write_origin
from luthier.models.load import fingerprint, quiet
from luthier.runs.at_step import hash_of_adapter
from luthier.runs.run_folder import ANSWERS
from luthier.system.files import whole_folder
from luthier.system.memory import give_back_memory
from luthier.system.progress import Progress
from luthier.system.words import human_bytes
from luthier.types import Message

QUESTIONS = (
    "What is the capital of France?",
    "写一首关于春天的短诗。",
    "Write a function that adds two numbers.",
    "Who are you?",
)
TEXTS = (
    "The quick brown fox jumps over the lazy dog, and then it rests.",
    "def add(a, b):\n    return a + b\n",
    "从前有一座山，山上有一座庙。",
)
MOST_TOKENS = 128
"""Of one text of the comparison."""
MOST_RUN_PROMPTS = 4

BASES = get_args(Base)
HELD_OUT_ROWS = 16
"""Of the run's held-out data, at most so many are compared on."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how it differs from what it came from."""

    folder: Path
    kind: str
    dtype: str
    size_bytes: int
    drift: Drift | ScoreDrift
    """the written folder against the run"""
    tuning: Drift | ScoreDrift | None
    """the base against the run: what the tuning changed, on the same texts, of scores with the head of the run in both; None
    without an adapter"""
    prompts: served.Compared | None = None
    """whether another engine reads the prompts as they were trained; None where it was not asked"""
    system: str | None = None
    """the system text that all training conversations had; it is in the folder's luthier.json, and `chat` uses it"""
    choice: Drift | ScoreDrift | None = None
    """the base that was merged into against the quantized one of the training, each with the adapter; None where the base
    was not quantized"""
    next: str = ""
    """a line that asks it; "" where it has no chat template"""

    def as_text(self) -> str:
        """For the terminal."""
        size = f"{self.size_bytes / 1e6:,.1f} MB"
        lines = [f"{self.folder}: {self.kind}, {self.dtype}, {size}", self.drift.whole_text()]
        if self.tuning is not None:
            lines.append(f"for comparison, tuning itself changed: {self.tuning.as_text()}")
        if self.choice is not None:
            lines.append(f"this base against the quantized one of the training: {self.choice.whole_text()}")
        if self.prompts is not None:
            lines.append(self.prompts.as_text())
        if self.system:
            lines.append(
                f"system text of its training, kept in luthier.json, where chat finds it: {excerpt(self.system)}"
            )
            lines.append("the saved template puts it before what other tools ask without one")
        if self.next:
            lines += ["next", f"  {self.next}"]
        return "\n".join(lines)


def export(
    target: str,
    to: str,
    output: str | Path,
    *,
    settings: dict[str, Any] | None = None,
    base: str = "as trained",
    unproven: bool = False,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = print,
) -> Exported:
    """Writes RUN, ADAPTER or MODEL as the export `to`.

    Args:
        output: a folder that does not exist or is empty.
        settings: keys of the export's own Config.
        base: `as trained`; where that was quantized, a merge takes `16bit`, the unquantized base, or `dequantized`, the
            values that it was trained on, as plain weights.
        unproven: do not ask another engine whether it reads the prompts as they were trained.
        say: gets a line before each long step.

    Raises:
        UserError: the folder is in use, there is nothing to export, or the result would not be what was trained or not
            be served as it was trained.
        EnvironmentProblem: no room or no permission; nothing is left behind.
    """
    if base not in BASES:
        raise UserError("--base", excerpt(base), "one of " + ", ".join(BASES))
    kind: Any = component.load("export", to)
    exporter = kind(_config(kind, to, settings or {}))
    folder = Path(output)
    refuse_used(folder)
    say(f"opening {target} in float32 on the CPU")
    opened = _open(target, "16bit" if exporter.needs_adapter else "as trained", trust_remote_code)
    _refuse_wrong(exporter, to, opened, base, folder)
    inputs = _inputs(opened, say)
    held = None
    if opened.quantization is not None and not exporter.needs_adapter:
        held = _logits(opened.model, inputs)
        opened.model = None  # one model at a time
        give_back_memory()
        say("opening its base as it is merged into")
        opened = _open(target, cast("Base", base), trust_remote_code)
    scored = opened.gives_scores  # no other engine is asked for scores, and nobody chats with them
    parts = _parts(opened, as_stored=base != "dequantized" or opened.quantization is None)
    _refuse_full_disk(folder, exporter.size_bytes(parts))
    opened.model = None  # the parts alone hold it now, and let go of it
    original = _logits(parts.model, inputs)
    choice = _drift(parts, held, original) if held is not None else None
    tuning = _effect_of_tuning(parts, original, inputs)
    renderer = None if unproven or exporter.needs_adapter or scored else opened.renderer
    written, prompts = _write_and_compare(exporter, parts, folder, original, inputs, tuning, renderer, say)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    ask = _line_that_asks(folder, trust_remote_code) if parts.template is not None and not scored else ""
    return Exported(folder, to, exporter.dtype(parts), size, written, tuning, prompts, opened.system, choice, ask)


def _line_that_asks(folder: Path, trust_remote_code: bool) -> str:
    return f"luthier chat {shlex.quote(str(folder))}" + (" --trust-remote-code" if trust_remote_code else "")


def _open(target: str, base: Base, trust_remote_code: bool) -> Opened:
    """In float32 on the CPU."""
    where = torch.device("cpu")
    return open_model(target, dtype="float32", device=where, base=base, trust_remote_code=trust_remote_code, takes="either")


def _effect_of_tuning(parts: Parts, original: Sequence[torch.Tensor], inputs: list[list[int]]) -> Drift | ScoreDrift | None:
    """Of a model of scores with the head that was trained: another one gives other scores, whatever else was learned."""
    if parts.adapter is None:
        return None
    with parts.model.disable_adapter():
        if parts.scored:
            parts.model.get_base_model().score.enable_adapters(True)
        return _drift(parts, original, _logits(parts.model, inputs))


def _drift(parts: Parts, original: Sequence[torch.Tensor], written: Sequence[torch.Tensor]) -> Drift | ScoreDrift:
    return score_drift(original, written) if parts.scored else drift(original, written)


def _write_and_compare(
    exporter: Any,
    parts: Parts,
    folder: Path,
    original: Sequence[torch.Tensor],
    inputs: list[list[int]],
    tuning: Drift | ScoreDrift | None,
    renderer: ChatRenderer | None,
    say: Callable[[str], None],
) -> tuple[Drift | ScoreDrift, served.Compared | None]:
    """Writes aside, reads back, compares, and only then gives the folder its name.

    Args:
        renderer: what another engine's prompts are compared with, if they are.
    """
    with whole_folder(folder.absolute(), existing="refuse", fix="free space, or another --output") as temporary:
        say(f"writing {folder}")
        with quiet():
            exporter.write(parts, temporary, say)
            write_origin(temporary, parts.origin)
            parts.model = None
            give_back_memory()
            say("reading it back")
            written = _drift(parts, original, _logits(exporter.reload(parts, temporary), inputs))
        refuse_lost(written, tuning, exporter.dtype(parts))
        prompts = None
        if renderer is not None:
            say("comparing prompts with another engine")
            prompts = served.compare(temporary, renderer, parts.origin.get("system"))
    return written, prompts


def _config(kind: Any, to: str, settings: dict[str, Any]) -> ComponentConfig:
    unknown = sorted(settings.keys() - kind.Config.model_fields.keys())
    if unknown:
        raise UserError(
            f"export {to}", f"it has no setting {unknown[0]!r}", "one of " + ", ".join(sorted(kind.Config.model_fields))
        )
    try:
        config: ComponentConfig = kind.Config.model_validate({"kind": to, **settings})
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UserError(
            f"export {to}", f"{'.'.join(map(str, wrong['loc']))} is {excerpt(wrong['input'])}", wrong["msg"]
        ) from None
    return config


def _refuse_wrong(exporter: Any, to: str, opened: Opened, base: str, folder: Path) -> None:
    command, output = f"luthier export {shlex.quote(opened.target)}", f"--output {shlex.quote(str(folder))}"
    if exporter.needs_adapter and opened.adapter is None:
        raise UserError(
            opened.target,
            "has no adapter: all its weights are its own",
            "a run with tuning: lora",
            f"{command} --to merged {output}",
        )
    if to == "adapter" or opened.quantization is None:
        return
    kind, command = opened.quantization.kind, f"{command} --to {to} {output} --base"
    completes = opened.adapter is not None and begins(opened.adapter) == "loftq"
    if base == "as trained":
        raise UserError(
            opened.target,
            f"the adapter was trained on a base held in {kind}, which a plain model is not",
            "the choice of another base: 16bit, the unquantized one, to which the adapter fits a little worse; or "
            "dequantized, the very values that it was trained on; or the adapter alone",
            f"{command} dequantized" if completes else f"{command} 16bit, or {command} dequantized",
        )
    if base == "16bit" and completes:
        raise UserError(
            opened.target,
            "the adapter began at what quantization lost (loftq), which the unquantized base still has",
            "the base that it completes",
            f"{command} dequantized",
        )


def _refuse_full_disk(folder: Path, need: int) -> None:
    """A model is as large as its weights."""
    place = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < need:
        raise EnvironmentProblem(
            str(folder), f"{human_bytes(free)} are free", human_bytes(need), "another --output, or free space"
        )


def _parts(opened: Opened, as_stored: bool) -> Parts:
    name, revision = opened.source.plain
    base = fingerprint(opened.source).as_dict()
    return Parts(
        opened.model,
        opened.tokenizer,
        with_default_system(opened.template.saved_source, opened.system) if opened.template is not None else None,
        tuple(sorted(opened.renderer.stop_ids)),
        opened.source.folder,
        name,
        revision,
        base_dtype(opened.source),
        as_stored and (opened.step is None or opened.adapter is not None),
        opened.adapter,
        opened.trust_remote_code,
        origin_of(opened.adapter or opened.source.folder, base, _adapter_hash(opened)),
        opened.gives_scores,
        opened.step,
    )


def _adapter_hash(opened: Opened) -> str | None:
    if opened.adapter is None:
        return None
    return adapter_hash(opened.adapter) if opened.step is None else hash_of_adapter(opened.target)


def _inputs(opened: Opened, say: Callable[[str], None]) -> list[list[int]]:
    """Ids of the texts of the comparison: fixed ones, prompts of the run itself, and rows that it held out."""
    prompts = list(QUESTIONS)
    if opened.run is not None:
        answers = opened.run / ANSWERS
        if answers.is_file():
            prompts += [
                str(line["prompt"]) for line in json.loads(answers.read_text(encoding="utf-8"))[:MOST_RUN_PROMPTS]
            ]
    ids = (
        [opened.renderer.prompt_ids([Message("user", prompt)]) for prompt in prompts]
        if opened.template is not None
        else []
    )
    ids += _held_out(opened, say)
    ids += [opened.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    limit = min(MOST_TOKENS, opened.context_tokens or MOST_TOKENS)
    return [found[:limit] for found in ids]


def _held_out(opened: Opened, say: Callable[[str], None]) -> list[list[int]]:
    """The first rows that the run held out; none where it held out none, or, which is said, its data are not there any
    more."""
    if opened.config is None or opened.config.data.eval is None:
        return []
    try:
        with Progress() as progress:
            rows = held_out_rows(opened, progress)
    except LuthierError as error:
        say(f"compared without rows that the run held out: {error.where}: {error.found}")
        return []
    return [list(map(int, rows[index].input_ids)) for index in rows.last_samples[:HELD_OUT_ROWS].tolist()]


@torch.no_grad()
def _logits(model: Any, inputs: list[list[int]]) -> list[torch.Tensor]:
    """[T, V] float32 for each text, which is alone under the stock attention; of a model of scores [1, 1]."""
    found = list[torch.Tensor]()
    with Progress() as progress:
        for ids in inputs:
            progress(f"{len(found)} of {len(inputs)} texts compared", len(found) / len(inputs))
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
            found.append(logits.reshape(-1, logits.shape[-1]).float())
    return found
