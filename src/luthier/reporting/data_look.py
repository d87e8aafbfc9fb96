"""What `luthier data` does: the configuration's data are prepared and looked at from all sides; no weights are loaded,
unless a run is asked what it made of each row.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier import component
from luthier.config import RunConfig
from luthier.data.prepare import prepare
from luthier.engine import device as find_device
from luthier.models.flat import prove
from luthier.models.load import choose_dtype, context_length, load_config, load_tokenizer
from luthier.models.sources import resolve
from luthier.planning import tokens_per_micro_batch
from luthier.reporting.data_report import DataReport, make_report
from luthier.reporting.row_progress import RowProgress
from luthier.reporting.shown_rows import Wanted

EXAMINED_ROWS = 1_000


def look(
    config: RunConfig,
    wanted: Wanted,
    *,
    after: Path | None = None,
    examined_rows: int = EXAMINED_ROWS,
    every_view: bool = False,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> DataReport:
    """The report on a run's data.

    Args:
        after: the folder of a run on these data.
        examined_rows: about how many rows at most that run's model is asked, 0 for none.
        every_view: show the first, the worst and the longest rows where none is asked for.
        say: gets a line before something that takes long.

    Raises:
        UserError: rows, a file or the template cannot be used; the wanted row is not there; the run learned from others.
    """
    source = resolve(config.model.path, config.model.revision, trust_remote_code)
    tokenizer = load_tokenizer(source.folder, trust_remote_code)
    model_config = load_config(source.folder, trust_remote_code)
    objective = component.load("objectives", config.objective.kind)(config.objective)
    context = context_length(model_config)
    if config.data.streaming:
        say("streaming: a run keeps no encoded rows; this report does, in the cache, to look at all of them")
        config = config.model_copy(update={"data": config.data.model_copy(update={"streaming": False})})
    with RowProgress() as progress:
        prepared = prepare(config, tokenizer, context_length=context, objective=objective, watch=progress)
    became = None
    if after is not None:
        from luthier.reporting.after import after_run  # peft takes seconds to import, and only a run's model needs it

        became = after_run(after, prepared, examined_rows, say, trust_remote_code)
    decisions = _decisions(after) if after is not None else _decided(config, model_config)
    if became is not None and not wanted.chosen:
        suspected = tuple(suspect["row"] for suspect in became["suspects"][: wanted.samples])
        wanted = replace(wanted, rows=suspected, samples=0 if suspected else wanted.samples)
    report = make_report(
        config,
        prepared,
        tokenizer,
        wanted,
        limit=min((value for value in (config.data.max_length, context) if value is not None), default=None),
        layout=decisions["layout"],
        max_tokens=decisions["max_tokens_per_micro_batch"],
        processes=decisions["processes"],
        every_view=every_view,
    )
    report.after = became
    return report


def _decisions(run: Path) -> dict[str, Any]:
    """As the run was made."""
    found: dict[str, Any] = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["decisions"]
    return found


def _decided(config: RunConfig, model_config: Any) -> dict[str, Any]:
    """As a run on this machine, in one process, would decide."""
    where = find_device()
    dtype, _ = choose_dtype(config.model.dtype, where)
    return {
        "layout": "flat" if prove(model_config, dtype, where).flat else "padded",
        "max_tokens_per_micro_batch": tokens_per_micro_batch(config.training.max_tokens_per_micro_batch, where),
        "processes": 1,
    }
