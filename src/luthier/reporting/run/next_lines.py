"""What can be typed next of a run: lines that are true of this one, at its end and on its page."""

from __future__ import annotations

import shlex

from luthier import component
from luthier.runs.figures import RunFigures, at
from luthier.runs.run_folder import ADAPTER

REQUEST = "Who are you?"
LONGEST_REQUEST = 60
WITH_ITS_LOSS = "loftq"
"""The beginning of an adapter that completes a quantized base, and no other."""


def next_lines(run: RunFigures) -> list[str]:
    """Commands, each ready to paste. What has no chat template cannot be asked; what was not held out, not be measured on."""
    target = shlex.quote(str(run.folder))
    known = at(run.manifest, "fingerprints")
    lines = list[str]()
    if _gives_scores(run):
        lines.append(f"luthier score {target} --data FILE")
    elif known is None or at(known, "template") is not None:
        lines += [f"luthier chat {target}", f"luthier compare {target} --prompt {shlex.quote(_request(run))}"]
    if at(known, "held_out") is not None:
        lines.append(f"luthier eval {target}")
    output = shlex.quote(f"{run.folder.resolve().name}-merged")
    return [*lines, f"luthier export {target} --to merged{_base(run)} --output {output}"]


def _gives_scores(run: RunFigures) -> bool:
    """Whether what it made scores answers, and has no words to say."""
    kind = at(run.config, "objective", "kind")
    return kind in component.listing("objectives") and "value" in component.load("objectives", str(kind)).wants


def _request(run: RunFigures) -> str:
    """The first that the run itself asked, where it is short."""
    asked = at(run.config, "training", "sample_prompts") or []
    first = str(asked[0]) if asked else REQUEST
    return first if len(first) <= LONGEST_REQUEST and first.isprintable() else REQUEST


def _base(run: RunFigures) -> str:
    """An adapter that was trained on a quantized base is merged into another one, which has to be chosen."""
    if at(run.config, "model", "quantization") is None or not (run.folder / ADAPTER).is_dir():
        return ""
    completes = at(run.config, "tuning", "init_lora_weights") == WITH_ITS_LOSS
    return " --base dequantized" if completes else " --base 16bit"
