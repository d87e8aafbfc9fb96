"""How many examples a property is tried on."""

from __future__ import annotations

from hypothesis import settings

QUICK, PROVE = 50, 500
"""Examples of a property that names no number, in `make test` and in `make prove`."""


def register_profiles() -> None:
    """`quick`, which is used, and `prove` for `pytest --hypothesis-profile prove`. No example is held to a time."""
    settings.register_profile("quick", settings.default, max_examples=QUICK, deadline=None)
    settings.register_profile("prove", settings.default, max_examples=PROVE, deadline=None)
    settings.load_profile("quick")


def examples(count: int) -> settings:
    """For a property whose examples are dear, or cheap: `count` of them in `make test`, in `make prove` as many times more
    as of any other."""
    return settings(max_examples=count * settings.default.max_examples // QUICK)
