"""Print the JSON Schema of the configuration, for editors."""

from __future__ import annotations


def config_schema() -> None:
    """Print the JSON Schema of the configuration, for editors.

    With "# yaml-language-server: $schema=luthier.schema.json" as the first line of a configuration, an editor completes
    its keys.

    Example:
      luthier config schema
      luthier config schema > luthier.schema.json
    """
    from luthier.cli._shared import print_json
    from luthier.config.schema import json_schema

    print_json(json_schema())
