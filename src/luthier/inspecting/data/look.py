"""What `luthier data` does: the configuration's data are looked at from all sides. A report that was made before is found
again at once; only a new one needs the tokenizer, and only a run that is asked about its rows the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from luthier import component
from luthier.config import RunConfig
from luthier.data import early_check
from luthier.data.recognise import parts_of
from luthier.data.row_names import RowName
from luthier.inspecting.data.kept import KeptReport
from luthier.inspecting.data.one_row import rows_called
from luthier.inspecting.data.report import DataReport
from luthier.inspecting.data.row_alone import row_alone
from luthier.inspecting.data.shown_row import ShownRow
from luthier.inspecting.data.shown_rows import Wanted
from luthier.models.sources.resolve import resolve
from luthier.runs import chain


def look_at_row(config: RunConfig, name: str, *, trust_remote_code: bool = False) -> list[ShownRow]:
    """The row of a name alone, in each file that has it; nothing else is encoded.

    Raises:
        UserError: no row has the name; the file or the template cannot be used.
    """
    RowName.read(name)
    config = chain.going_on(config)
    early_check.check(config)
    called = rows_called(
        parts_of(config, component.make("objectives", config.objective).takes), config.data.system, name
    )
    source = resolve(config.model.path, config.model.revision, trust_remote_code)
    return row_alone(config, source, called, trust_remote_code)


def look(
    config: RunConfig,
    wanted: Wanted,
    *,
    after: Path | None = None,
    examined_rows: int = 1_000,
    every_view: bool = False,
    trust_remote_code: bool = False,
    environment: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> DataReport:
    """The report on a run's data.

    Args:
        after: the folder of a run on these data.
        examined_rows: about how many rows at most that run's model is asked, 0 for none.
        every_view: show the first, the worst and the longest rows where none is asked for.
        environment: the process's variables; with them a report is kept, and found again where nothing has changed.
        say: gets a line before something that takes long.

    Raises:
        UserError: rows, a file or the template cannot be used; the wanted row is not there; the run learned from others.
    """
    config = chain.going_on(config)
    early_check.check(config)
    source = resolve(config.model.path, config.model.revision, trust_remote_code)
    if config.data.streaming:
        say("streaming: a run keeps no encoded rows; this report does, in the cache, to look at all of them")
        config = config.model_copy(update={"data": config.data.model_copy(update={"streaming": False})})
    kept = None
    if environment is not None and after is None and not trust_remote_code:
        kept = KeptReport(config, wanted, every_view, source.words, environment)
        if (found := kept.find()) is not None:
            return found
    from luthier.inspecting.data.fresh import new_report  # torch and transformers take seconds to import

    reports = new_report(config, source, wanted, after, examined_rows, every_view, trust_remote_code, say)
    if kept is not None:
        kept.keep(reports)
    return reports[0][1]
