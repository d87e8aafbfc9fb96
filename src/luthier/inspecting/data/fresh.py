"""The report of `luthier data` made anew: the data are prepared, and a run is asked what it made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier import component
from luthier.config import RunConfig
from luthier.data.dataset.prepare import Prepared, prepare
from luthier.data.dataset.progress import RowProgress
from luthier.data.dataset.workers import limit_of
from luthier.inspecting.data.report import DataReport, make_report, other_views
from luthier.inspecting.data.shown_rows import Wanted
from luthier.models.flat import prove
from luthier.models.precision import choose_dtype
from luthier.models.reading import add_tokens, context_length, load_config, load_tokenizer
from luthier.models.source import ModelSource
from luthier.objectives import Objective
from luthier.planning.layout import choose_layout
from luthier.planning.memory import tokens_per_micro_batch
from luthier.system.devices import device as find_device


def new_report(
    config: RunConfig,
    source: ModelSource,
    wanted: Wanted,
    after: Path | None,
    examined_rows: int,
    every_view: bool,
    trust_remote_code: bool,
    say: Callable[[str], None],
) -> list[tuple[Wanted, DataReport]]:
    """As `look.look`, and the same with other rows, where they come cheap; `source` is the model's."""
    tokenizer = load_tokenizer(source.words, trust_remote_code)
    add_tokens(tokenizer, config.data.add_tokens)
    model_config = load_config(source.folder, trust_remote_code)
    objective = component.make("objectives", config.objective)
    context = context_length(model_config)
    with RowProgress() as progress:
        prepared = prepare(config, tokenizer, context_length=context, objective=objective, watch=progress, refuse=False)
    became = None
    if after is not None:
        from luthier.inspecting.data.after import (
            after_run,  # peft takes seconds to import, and only a run's model needs it
        )

        became = after_run(after, prepared, examined_rows, say, trust_remote_code)
    decisions = _decisions(after) if after is not None else _decided(config, model_config, objective, prepared)
    if became is not None and not wanted.chosen:
        suspected = tuple(one["row"] for one in became["suspects"][: wanted.samples] if one["score"] >= 0)
        wanted = replace(wanted, rows=suspected, samples=0 if suspected else wanted.samples)
    report = make_report(
        config,
        prepared,
        tokenizer,
        wanted,
        limit=limit_of(config.data, context),
        layout=decisions["layout"],
        max_tokens=decisions["max_tokens_per_micro_batch"],
        processes=decisions["processes"],
        every_view=every_view,
    )
    report.after = became
    one_view = after is None and not every_view
    return [(wanted, report), *(other_views(report, prepared, wanted) if one_view else [])]


def _decisions(run: Path) -> dict[str, Any]:
    """As the run was made."""
    found: dict[str, Any] = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["decisions"]
    return found


def _decided(config: RunConfig, model_config: Any, objective: Objective, prepared: Prepared) -> dict[str, Any]:
    """As a run on this machine, in one process, would decide."""
    where = find_device()
    dtype, _ = choose_dtype(config.model.dtype, where)
    layout, _ = choose_layout(config, model_config, prove(model_config, dtype, where), objective, prepared.train)
    return {
        "layout": layout,
        "max_tokens_per_micro_batch": tokens_per_micro_batch(config.training.max_tokens_per_micro_batch, where),
        "processes": 1,
    }
