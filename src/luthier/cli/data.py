"""Show what a run would learn from: samples token by token, the ledger, the laws, the lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli._options import AsJson, ConfigAndOverrides, TrustRemoteCode

if TYPE_CHECKING:
    from luthier.data.prepare import Prepared
    from luthier.types import Sample


def data(
    arguments: ConfigAndOverrides = None,
    row: Annotated[
        str | None,
        typer.Option("--row", metavar="N|FILE:N", help="Show this row: its line, or its number in a JSON array."),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=0, help="How many samples are shown, from the first on.")
    ] = 3,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show what a run would learn from: samples token by token, the ledger, the laws, the lengths.

    Trained tokens are green; where there is no colour they stand in [brackets]. Only the tokenizer is loaded.

    Example:
      luthier data mine.yaml
      luthier data mine.yaml --row 17
      luthier data model=org/name data=train.jsonl output_dir=runs/mine on_bad_row=drop
      luthier data mine.yaml --json
    """
    from luthier import component, config
    from luthier.cli._shared import print_json, split_config_and_overrides
    from luthier.data.prepare import prepare
    from luthier.models.load import context_length, load_config, load_tokenizer
    from luthier.models.sources import resolve
    from luthier.reporting.row_progress import RowProgress

    path, overrides = split_config_and_overrides(arguments or [])
    run = config.load(path, overrides)
    source = resolve(run.model.path, run.model.revision, trust_remote_code)
    tokenizer = load_tokenizer(source.folder, trust_remote_code)
    objective = component.load("objectives", run.objective.kind)(run.objective)
    context = context_length(load_config(source.folder, trust_remote_code))
    with RowProgress() as progress:
        prepared = prepare(run, tokenizer, context_length=context, objective=objective, watch=progress)
    shown = chosen(prepared, row, samples)
    if as_json:
        print_json(as_values(prepared, tokenizer, shown))
    else:
        show(prepared, tokenizer, shown)


def chosen(prepared: Prepared, row: str | None, samples: int) -> list[Sample]:
    """The samples to show: the first ones, or those of one row.

    Raises:
        UserError: no sample has this row; says why, if it was dropped.
    """
    from luthier.errors import UserError

    if row is None:
        return [prepared.train[index] for index in range(min(samples, len(prepared.train)))]
    sets = [part for part in (prepared.train, prepared.eval) if part is not None]
    found = [
        part[index]
        for part in sets
        for index in range(len(part))
        if part.row(index) == row or part.row(index).rpartition(":")[2] == row
    ]
    if found:
        return found
    for reason, rows in prepared.ledger.dropped.items():
        if dropped := next(
            (name for name in rows if name == row or name.split(" ")[0].rpartition(":")[2] == row), None
        ):
            raise UserError(f"--row {row}", f"{dropped} was dropped: {reason}", "a row that is used")
    raise UserError(f"--row {row}", "no row has this number", f"a line of the data, such as {prepared.train.row(0)}")


def as_values(prepared: Prepared, tokenizer: Any, shown: list[Sample]) -> dict[str, Any]:
    """What is shown, as plain values."""
    from dataclasses import asdict

    from luthier.reporting.token_view import histogram, tokens_of

    ledger = prepared.ledger.as_dict()
    return {
        "ledger": ledger,
        "laws": {
            law: "pass" if not broken else f"broken by {broken} rows, which are dropped"
            for law, broken in ledger["laws"].items()
        },
        "lengths": [
            {"from": low, "to": high, "samples": count} for low, high, count in histogram(prepared.train.lengths)
        ],
        "notes": prepared.notes,
        "samples": [
            {"row": sample.row, "tokens": [asdict(token) for token in tokens_of(tokenizer, sample)]} for sample in shown
        ],
    }


def show(prepared: Prepared, tokenizer: Any, shown: list[Sample]) -> None:
    """Prints the samples, then the account."""
    from rich.console import Console

    from luthier.reporting.token_view import histogram_lines, token_view, tokens_of

    console = Console(highlight=False, soft_wrap=True)
    colour = console.is_terminal and console.color_system is not None and not console.no_color
    for sample in shown:
        trained = sample.trained_tokens
        console.print(
            f"-- {sample.row}: {len(sample):,} tokens, {trained:,} trained ({'green' if colour else 'in [brackets]'})",
            markup=False,
        )
        console.print(token_view(tokens_of(tokenizer, sample), colour))
        console.print()
    console.print("\n".join(prepared.ledger.lines()), markup=False)
    console.print()
    for law, broken in prepared.ledger.laws.items():
        words = law.replace("_", " ")
        console.print(
            f"{'pass  ' if not broken else 'BROKEN'}  {words}" + (f": {broken:,} rows, dropped" if broken else ""),
            markup=False,
        )
    console.print()
    console.print("\n".join(["tokens of a sample    samples", *histogram_lines(prepared.train.lengths)]), markup=False)
    for note in prepared.notes:
        console.print(f"note: {note}", markup=False)
