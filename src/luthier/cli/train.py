"""Fine-tune a model as a YAML file says."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli._options import ConfigAndOverrides, TrustRemoteCode


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
    from luthier.cli._shared import split_config_and_overrides
    from luthier.data import early_check
    from luthier.runs import chain, manifest, trackers
    from luthier.system.launch import launch
    from luthier.system.streams import say

    path, overrides = split_config_and_overrides(arguments or [])
    checked = chain.going_on(config.load(path, overrides))
    main_process = launch().rank == 0
    if not resume:  # a run that goes on, or is finished, says itself what it lacks
        with config.placed(path):
            early_check.check(checked)
        if main_process:
            manifest.refuse_used(checked)
    elif manifest.is_complete(checked):
        if main_process:
            say(manifest.DONE.format(checked.output_dir))
        return
    if main_process:
        trackers.check_trackers(checked.report_to)
        trackers.check_logins(checked.report_to)
    from luthier.api import train_from

    train_from(checked, resume=resume, trust_remote_code=trust_remote_code)
