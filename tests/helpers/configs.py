"""Configurations from the text of a file, and what is said of wrong ones."""

from __future__ import annotations

import pytest

from luthier import config
from luthier.config.documents import parse_yaml
from luthier.errors import UserError


def load(text: str, *overrides: str) -> config.RunConfig:
    """The run of the text of a file, and of what the command line adds."""
    return config.assemble(parse_yaml(text, "mine.yaml"), overrides)


def refusal(text: str, *overrides: str) -> str:
    """The message that refuses it."""
    with pytest.raises(UserError) as caught:
        load(text, *overrides)
    return str(caught.value)
