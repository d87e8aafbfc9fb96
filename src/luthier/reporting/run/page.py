"""report.html: what a run did, on one page that needs nothing but itself. Made from the run's files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from luthier.config.components import DEFAULT_KINDS
from luthier.reporting.curves import short_number
from luthier.reporting.run.loss_curves import all_curves
from luthier.reporting.run.next_lines import next_lines
from luthier.reporting.style import STYLE, escape
from luthier.runs.figures import Line, RunFigures, at, read_figures
from luthier.runs.run_folder import REPORT
from luthier.runs.screen import duration, memory
from luthier.system.faults import faults_told
from luthier.system.files import write_file
from luthier.system.words import counted

MAX_SAMPLES_OPEN = 3
"""How many prompts' samples are unfolded when the page opens."""
MAX_ANSWERS = 100
NOT_ASKED = "This run was to ask nothing: training.sample_prompts says what a run asks before, on the way and after."
MAX_TEXT = 20_000
"""Characters of one text that are shown."""


def write_report(folder: Path | str) -> Path:
    """Writes `report.html` into the run's folder from the files that lie there, and returns its path.

    A file that is missing is named in its section. The page loads nothing: styles and curves are inside, and there are
    no scripts.

    Raises:
        UserError: something that is no file has its name.
        EnvironmentProblem: it cannot be written.
    """
    path = Path(folder) / REPORT
    page = render_report(read_figures(Path(folder))).encode("utf-8", errors="replace")
    with faults_told(
        path, "room for the report; the run itself is whole", "free space, then the same command with --resume"
    ):
        write_file(path, page)
    return path


def render_report(run: RunFigures) -> str:
    """The page as text."""
    name = run.folder.resolve().name
    sections = [
        ("answers", "Answers, before and after", _answers),
        ("curves", "Curves", _curves),
        ("samples", "Answers on the way", _samples),
        ("data", "Data", _data),
        ("config", "Configuration", _config),
        ("machine", "Versions, machine, decisions", _manifest),
    ]
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{escape(title)}</h2>{build(run)}</section>'
        for key, title, build in sections
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(name)}: luthier run</title><style>{STYLE}</style></head><body>"
        f'<header><div class="in"><p class="eyebrow">luthier run</p><h1>{escape(name)}</h1>{_what(run)}'
        f'<nav aria-label="Sections">{links}</nav></div></header><main>{_tiles(run)}{body}</main>'
        f"<footer>{_footer(run)}</footer></body></html>\n"
    )


def _what(run: RunFigures) -> str:
    """One sentence: which model, how, on what."""
    model = at(run.config, "model", "path") or at(run.config, "model")
    if not isinstance(model, str):
        return '<p class="what">There is no config.yaml that says what was trained.</p>'
    tuning = at(run.config, "tuning", "kind") or at(run.config, "tuning") or DEFAULT_KINDS["tuning"]
    objective = at(run.config, "objective", "kind") or at(run.config, "objective") or DEFAULT_KINDS["objective"]
    held_in = at(run.config, "model", "quantization", "kind")
    rank = at(run.config, "tuning", "r")
    method = f"{tuning}{f', rank {rank}' if rank else ''}{f', base in {held_in}' if held_in else ''}"
    files = at(run.config, "data", "train") or []
    paths = (
        [str(one.get("path", "")) for one in files if isinstance(one, Mapping)]
        if isinstance(files, list)
        else [str(files)]
    )
    data = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    return (
        f'<p class="what"><b>{escape(model)}</b> tuned with <b>{escape(method)}</b> ({escape(str(objective))}) '
        f"on <b>{escape(data or 'unknown data')}</b></p>"
    )


def _tiles(run: RunFigures) -> str:
    tiles = [_result_tile(run)]
    if run.trained_tokens:
        tiles.append(("Tokens trained", f"{run.trained_tokens:,}", _epochs(run)))
    if run.seconds:
        tiles.append(("Time in steps", duration(run.seconds), counted(len(run.steps), "step")))
    if run.tokens_per_s:
        tiles.append(("Speed", f"{run.tokens_per_s:,.0f} tok/s", "mean over the run"))
    if run.peak_memory_bytes is not None:
        tiles.append(("Peak memory", memory(run.peak_memory_bytes), "highest of all steps"))
    lead, *others = tiles
    out = f'<div class="tile lead"><dt>{lead[0]}</dt><dd>{lead[1]}{lead[2]}</dd></div>'
    out += "".join(
        f'<div class="tile"><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>'
        for name, value, more in others
    )
    return f'<dl class="tiles">{out}</dl>'


def _result_tile(run: RunFigures) -> tuple[str, str, str]:
    """Held-out loss before and after where it is known, else the training loss. All three are HTML."""
    before, after = run.first_evaluation, run.last_evaluation
    if before and after and _is_number(before.get("eval_loss")) and _is_number(after.get("eval_loss")):
        return "Held-out loss", *_change(before["eval_loss"], after["eval_loss"])
    if after and _is_number(after.get("eval_loss")):
        return "Held-out loss", f"{after['eval_loss']:.3f}", "<small>not measured before training</small>"
    losses = [line["loss"] for line in run.steps if _is_number(line.get("loss"))]
    if losses:
        value, more = _change(losses[0], losses[-1])
        return "Training loss, first and last step", value, more + "<small>no held-out data</small>"
    return "Result", "none yet", "<small>no step was recorded</small>"


def _change(before: float, after: float) -> tuple[str, str]:
    share = (after - before) / before * 100 if before else 0.0
    look, word = ("better", "lower") if after < before else ("worse", "higher")
    more = "unchanged" if after == before else f"{abs(share):.0f} % {word}"
    return (
        f'{before:.3f} <span aria-label="to">→</span> {after:.3f}',
        f'<small class="{look if after != before else ""}">{more}</small>',
    )


def _epochs(run: RunFigures) -> str:
    epoch = run.steps[-1].get("epoch") if run.steps else None
    return f"{epoch:.2f} epochs" if _is_number(epoch) else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _curves(run: RunFigures) -> str:
    if not run.steps and not run.evaluations:
        return _missing("metrics.jsonl", "no step was recorded")
    hint = '<p class="hint">Point at a curve to read its values. Faint: each step. Strong: smoothed.</p>'
    return hint + '<div class="curves">' + "".join(all_curves(run)) + "</div>"


def _answers(run: RunFigures) -> str:
    if not run.answers and _asks_nothing(run):
        return f'<p class="missing">{escape(NOT_ASKED)}</p>'
    if not run.answers:
        return _missing("answers.json", "no requests were answered before and after training")
    hint = '<p class="hint">The same requests to the model as it came and as it is now.</p>'
    more = len(run.answers) - MAX_ANSWERS
    tail = f'<p class="hint">{more:,} more are in answers.json.</p>' if more > 0 else ""
    return hint + "".join(_answer(line) for line in run.answers[:MAX_ANSWERS]) + tail


def _asks_nothing(run: RunFigures) -> bool:
    return bool(run.config) and not at(run.config, "training", "sample_prompts")


def _answer(line: Line) -> str:
    sides = "".join(
        f'<div class="said {key}"><h3>{title}</h3>{_text(line.get(key), "text")}</div>'
        for key, title in (("before", "Before"), ("after", "After"))
    )
    reference = line.get("reference")
    wanted = (
        f'<div class="reference"><div class="label">Reference</div>{_text(reference, "text")}</div>'
        if reference
        else ""
    )
    prompt = _text(line.get("prompt"), "text prompt")
    return f'<article class="card">{prompt}<div class="pair">{sides}</div>{wanted}</article>'


def _samples(run: RunFigures) -> str:
    if not run.samples and _asks_nothing(run):
        return f'<p class="missing">{escape(NOT_ASKED)}</p>'
    if not run.samples:
        return _missing("samples.jsonl", "no samples were taken")
    by_prompt: dict[str, list[Line]] = {}
    for line in run.samples:
        by_prompt.setdefault(str(line.get("prompt", "")), []).append(line)
    out = []
    for number, (prompt, lines) in enumerate(by_prompt.items()):
        rows = "".join(
            f'<tr><th scope="row" class="number">{steps}</th><td>{_text(answer, "text")}</td></tr>'
            for steps, answer in _runs_of_equal(lines)
        )
        table = (
            '<table><thead><tr><th scope="col" class="number">Step</th><th scope="col">Answer</th></tr></thead>'
            f"<tbody>{rows}</tbody></table>"
        )
        state = " open" if number < MAX_SAMPLES_OPEN else ""
        out.append(
            f'<details{state}><summary>{escape(_cut(prompt))}</summary><div class="in wide">{table}</div></details>'
        )
    return "".join(out)


def _runs_of_equal(lines: list[Line]) -> list[tuple[str, Any]]:
    """Steps and answer; an answer that stays the same is told once, as `24 to 240`."""
    out = []
    for answer, group in groupby(lines, key=lambda line: line.get("answer")):
        steps = [line["step"] for line in group]
        out.append((f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}", answer))
    return out


def _data(run: RunFigures) -> str:
    if not run.ledger:
        return _missing("ledger.json", "the rows of this run are not accounted for")
    hint = '<p class="hint">Every row that came in, and what became of it.</p>'
    return f'{hint}<div class="card wide">{_tree(run.ledger)}</div>'


def _config(run: RunFigures) -> str:
    if not run.config_text:
        return _missing("config.yaml", "the configuration of this run is not known")
    hint = '<p class="hint">With every default filled in; <code>luthier train</code> on it gives the same run.</p>'
    return f'{hint}<pre tabindex="0" aria-label="config.yaml"><code>{escape(run.config_text)}</code></pre>'


def _manifest(run: RunFigures) -> str:
    if not run.manifest:
        return _missing("manifest.json", "versions, hardware and decisions of this run are not known")
    plain = {key: value for key, value in run.manifest.items() if not isinstance(value, (Mapping, list))}
    nested = {key: value for key, value in run.manifest.items() if key not in plain}
    parts = [("general", plain)] if plain else []
    return "".join(
        f'<details><summary>{escape(_words(key))}</summary><div class="in wide">{_tree(value)}</div></details>'
        for key, value in [*parts, *nested.items()]
    )


def _footer(run: RunFigures) -> str:
    lines = ", ".join(f"<code>{escape(line)}</code>" for line in next_lines(run))
    return (
        f"<p>Next: {lines}. Made from the files of the run's folder; nothing on this page comes from anywhere else.</p>"
    )


def _missing(name: str, meaning: str) -> str:
    return f'<p class="missing">There is nothing in {escape(name)}: {escape(meaning)}.</p>'


def _text(value: Any, look: str) -> str:
    if value is None or value == "":
        return '<p class="missing">(nothing)</p>'
    return f'<p class="{look}" dir="auto">{escape(_cut(str(value)))}</p>'


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} characters more)"


def _words(key: object) -> str:
    text = str(key).replace("_", " ")
    return text[:1].upper() + text[1:]


def _tree(value: Any, name: object = "") -> str:
    """Any JSON as tables: maps as rows of name and value, lists of maps as columns; the end of `name` tells units."""
    if isinstance(value, Mapping):
        if not value:
            return '<span class="missing">none</span>'
        rows = "".join(
            f'<tr><th scope="row">{escape(_words(key))}</th><td>{_tree(item, key)}</td></tr>'
            for key, item in value.items()
        )
        return f'<table class="stack"><tbody>{rows}</tbody></table>'
    if isinstance(value, list):
        return _list(value)
    if _is_number(value) and str(name).endswith("_bytes"):
        return memory(value)
    return _scalar(value)


def _list(values: Sequence[Any]) -> str:
    if not values:
        return '<span class="missing">none</span>'
    shown, more = values[:MAX_ANSWERS], len(values) - MAX_ANSWERS
    tail = f'<p class="hint">and {more:,} more</p>' if more > 0 else ""
    maps = [one for one in shown if isinstance(one, Mapping)]
    if len(maps) != len(shown):
        return ", ".join(_tree(one) for one in shown) + tail
    columns = list(dict.fromkeys(key for one in maps for key in one))
    head = "".join(f'<th scope="col">{escape(_words(key))}</th>' for key in columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_tree(one.get(key), key)}</td>" for key in columns) + "</tr>" for one in maps
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{tail}"


def _scalar(value: Any) -> str:
    if value is None:
        return '<span class="missing">none</span>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return escape(short_number(value) if isinstance(value, float) else _cut(str(value)))
