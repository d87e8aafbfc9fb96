"""Fine-tune a model as a YAML file says."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli._options import ConfigAndOverrides, TrustRemoteCode

CONTEXT_SETTINGS = {"ignore_unknown_options": True}
"""Another program's flags are answered, with what is to be typed here."""


def train(
    arguments: ConfigAndOverrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of output_dir.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Fine-tune a model as a YAML file says.

    Without a file, model and data are given as KEY=VALUE. `luthier explain` lists all keys.

    Example:
      luthier train mine.yaml
      luthier train mine.yaml learning_rate=1e-4 r=32
      luthier train model=org/name data=train.jsonl
      luthier train mine.yaml --resume
    """
    from luthier import config
    from luthier.api import train_from
    from luthier.cli._shared import split_config_and_overrides, split_flags
    from luthier.data import early_check
    from luthier.runs import manifest
    from luthier.system.launch import launch

    words, flags = split_flags(arguments or [], ["--resume", "--trust-remote-code", "--debug"])
    path, overrides = split_config_and_overrides(words)
    checked = config.load(path, overrides, flags)
    if not resume:  # a run that goes on, or is finished, says itself what it lacks
        early_check.check(checked)
        if launch().rank == 0:
            manifest.refuse_used(checked)
    train_from(checked, resume=resume, trust_remote_code=trust_remote_code)
