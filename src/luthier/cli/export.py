"""Write a run as a folder that other tools load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    target: Annotated[str, typer.Argument(metavar="RUN|ADAPTER", help="A run's folder, or an adapter's.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new or empty folder.")],
    to: Annotated[str, typer.Option(metavar="KIND", help="merged: a plain model; adapter: a PEFT folder.")] = "merged",
    dtype: Annotated[str | None, typer.Option(help="Of the written weights: float32, bfloat16, float16. Default: as the base's are stored.")] = None,
    base: Annotated[str, typer.Option(help="16bit: merge into the unquantized base although the adapter was trained on a quantized one.")] = "as trained",
    as_json: Annotated[bool, typer.Option("--json", help="Print for programs.")] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")] = False,
) -> None:
    """Write a run as a folder that other tools load.

    The folder is read back and compared with the run before it gets its name; the drift is printed.

    Example:
      luthier export runs/mine --to merged --output mine-merged
      luthier export runs/mine --to adapter --output mine-adapter
    """
    import sys
    from dataclasses import asdict

    from luthier.cli._shared import print_json
    from luthier.exporting import export as write

    settings = {} if dtype is None else {"dtype": dtype}
    done = write(target, to, output, settings=settings, base=base, trust_remote_code=trust_remote_code, say=lambda text: print(text, file=sys.stderr))
    if as_json:
        print_json(asdict(done))
        return
    drift = done.drift
    print(f"{done.folder}: {done.kind}, {done.dtype}, {done.size_bytes / 1e6:,.1f} MB")
    print(f"drift over {drift.positions} positions: max |dlogit| {drift.max_logit_difference:.2e} (largest logit {drift.largest_logit:.3g}), "
          f"same top token {100 * drift.top1_agreement:.1f} %, mean KL {drift.mean_kl_nats:.1e} nats")
    if done.tuning is not None:
        print(f"for comparison, tuning itself changed: same top token {100 * done.tuning.top1_agreement:.1f} %, mean KL {done.tuning.mean_kl_nats:.1e} nats")
