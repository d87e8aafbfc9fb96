"""The least and the greatest sensible value of what keys have in common: beyond them a run would not end, not fit, or learn
nothing. They stand in docs/config.md and the JSON Schema."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

MOST_STEPS = 10_000_000
MOST_EPOCHS = 100_000
MOST_ROWS = 1_000_000_000
MOST_TOKENS = 100_000_000
MOST_LAYERS = 10_000
MOST_RANK = 4_096
MOST_BYTES = 1 << 50
LARGEST_WEIGHT = 1e6
SMALLEST_WEIGHT = 1e-6
LARGEST_SEED = 2**32 - 1
LONGEST_NAME = 4_000
LONGEST_TEXT = 100_000

Share = Annotated[float, Field(gt=0, lt=1)]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Every = Share | Steps
"""Steps between two events, or below 1 a share of all steps."""
Rows = Annotated[int, Field(ge=1, le=MOST_ROWS)]
Bytes = Annotated[int, Field(ge=1, le=MOST_BYTES)]
Layers = Annotated[int, Field(ge=1, le=MOST_LAYERS)]
LayerNumber = Annotated[int, Field(ge=0, le=MOST_LAYERS)]
Rank = Annotated[int, Field(ge=1, le=MOST_RANK)]
Weight = Annotated[float, Field(ge=SMALLEST_WEIGHT, le=LARGEST_WEIGHT)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]
"""What a model reads."""
