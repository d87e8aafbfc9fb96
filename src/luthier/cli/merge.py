"""The same as `export --to merged`."""

from __future__ import annotations

from luthier.cli._options import AsJson, MergedInto, NewFolder, RunOrAdapter, TrustRemoteCode, Unproven, WrittenDtype


def merge(
    target: RunOrAdapter,
    output: NewFolder,
    dtype: WrittenDtype = None,
    base: MergedInto = "as trained",
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
    unproven: Unproven = False,
) -> None:
    """The same as `luthier export --to merged`.

    Example:
      luthier merge runs/mine --output mine-merged
    """
    from luthier.cli.export import export

    export(target, output, "merged", dtype, base, as_json, trust_remote_code, unproven)
