"""Show what a run would learn from, or has learned: every token, the ledger, the laws, duplicates, languages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli._options import AsJson, ConfigAndOverrides, TrustRemoteCode
from luthier.system.streams import complain, show

After = Annotated[
    Path | None,
    typer.Option(
        "--after",
        metavar="RUN",
        help="What this run made of each row: learned, forgotten, probably mislabelled. Without a configuration: the run's.",
    ),
]
Suspects = Annotated[
    int,
    typer.Option(
        "--suspects",
        min=0,
        max=1_000_000,
        help="With --after: how many rows at most the run's model is asked whether their answers fit; 0 for none.",
    ),
]
Page = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write the report as one page that needs nothing else."),
]
Force = Annotated[bool, typer.Option("--force", help="With --html: write over a file that luthier has not written.")]
RowName = Annotated[
    str | None,
    typer.Option(
        "--row",
        metavar="LINE|FILE:LINE|#N",
        help="Show this row alone, and what becomes of it. LINE: where it begins; #N: record N of a JSON array. FILE: path or name.",
    ),
]
Worst = Annotated[
    bool,
    typer.Option("--worst", help="Show the most suspicious rows: cut, contradicted, near the limit, hardly trained."),
]
Longest = Annotated[bool, typer.Option("--longest", help="Show the longest rows.")]
Count = Annotated[
    int,
    typer.Option(
        "--samples", min=0, max=100_000, help="How many rows are shown: of the first, the worst or the longest."
    ),
]


def data(
    arguments: ConfigAndOverrides = None,
    row: RowName = None,
    worst: Worst = False,
    longest: Longest = False,
    samples: Count = 3,
    after: After = None,
    suspects: Suspects = 1_000,
    html: Page = None,
    force: Force = False,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show what a run would learn from: rows token by token, the ledger, the laws, lengths, batches, duplicates, languages.

    Trained tokens are green; where there is no colour they stand in [brackets]. Beside each row stands what is served to
    get its answer. Only the tokenizer is loaded; with --after, the run's model too. Where rows cannot be used, the report goes on
    without them, and the exit code is 2.

    Example:
      luthier data mine.yaml
      luthier data mine.yaml --row 17
      luthier data mine.yaml --worst --samples 5
      luthier data mine.yaml --html data.html
      luthier data --after runs/mine
      luthier data model=org/name data=train.jsonl on_bad_row=drop
      luthier data mine.yaml --json
    """
    from luthier import config
    from luthier.cli._shared import split_config_and_overrides
    from luthier.errors import UserError
    from luthier.inference.as_typed import check_after
    from luthier.inspecting.data.look import look
    from luthier.inspecting.data.shown_rows import Wanted

    if after is not None:
        check_after(after, asks=suspects > 0)
    path, overrides = split_config_and_overrides(arguments or [], "luthier data")
    path = after / "config.yaml" if path is None and after is not None else path
    wanted = config.load(path, overrides, config.Typed(command="luthier data"))
    if row is not None and not (worst or longest or after or html):
        _show_row(wanted, row, as_json, trust_remote_code)
        return
    _check_page(html, wanted, path, force)
    with config.placed(path):
        report = look(
            wanted,
            Wanted(row, worst, longest, samples),
            after=after,
            examined_rows=suspects,
            say=complain,
            every_view=html is not None,
            trust_remote_code=trust_remote_code,
            environment=os.environ,
        )
    _show(report, html, as_json)
    if report.refused is not None:
        raise UserError("", report.refused)


def _show_row(wanted: Any, row: str, as_json: bool, trust_remote_code: bool) -> None:
    from luthier.cli._shared import print_json
    from luthier.inspecting.data.look import look_at_row
    from luthier.inspecting.data.report import FORMAT, rows_as_values
    from luthier.reporting.data.text import print_rows

    rows = look_at_row(wanted, row, trust_remote_code=trust_remote_code)
    if as_json:
        print_json({"format": FORMAT, "rows": rows_as_values(rows)})
    else:
        print_rows(rows)


def _check_page(page: Path | None, wanted: Any, config_file: Path | None, force: bool) -> None:
    if page is None:
        return
    from luthier.data.recognise import paths_of
    from luthier.reporting.pages import check_place

    check_place(page, [*([config_file] if config_file is not None else []), *paths_of(wanted)], force)


def _show(report: Any, html: Path | None, as_json: bool) -> None:
    from luthier.cli._shared import print_json
    from luthier.reporting.data.text import print_report

    if html is not None:
        from luthier.reporting.data.page import write_page

        write_page(report, html)
    if as_json:
        print_json(report.as_values())
    elif html is not None:
        show(f"the report is in {html}")
    else:
        print_report(report)
