"""The oldest releases of other packages that luthier runs on, for what is known of older ones. The ranges of an install are narrower; this
is for an environment in which something was put in the place of what was installed. And the least memory that a process may address.
"""

from __future__ import annotations

import contextlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from luthier.errors import EnvironmentProblem

FLOORS = {
    "torch": ("2.10", "CVE-2025-32434 and CVE-2026-24747: weights that are loaded as weights alone could run code"),
    "transformers": ("5.3", "CVE-2026-4372 and CVE-2026-5241: a config.json could have code run that nobody trusted"),
    "jinja2": ("3.1.6", "CVE-2025-27516: a chat template could leave its sandbox"),
    "datasets": ("4.0", "a folder of data could have a script of its own run"),
    "pyarrow": ("14.0.1", "CVE-2023-47248: a file of rows could run code"),
}
"""Package -> the first release without what is said of older ones."""
ADDRESS_SPACE = 1_500_000_000
"""Bytes of a process: torch, transformers and peft take 1.1 GB before there is a model, each thread more. Where they get less,
libraries in C++ end the process without a word.
"""


@cache
def check_floors() -> None:
    """Refuses to begin on a package with a known hole; what is not installed has none.

    Raises:
        EnvironmentProblem: names the package, the reason, and the line that mends it.
    """
    from packaging.version import InvalidVersion, Version

    for name, (least, why) in FLOORS.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        except KeyError:  # an interrupted install left a folder without metadata; Python 3.11 says None
            found = "unknown"
        try:
            release = Version(found).release
        except (InvalidVersion, TypeError):
            raise EnvironmentProblem(
                name,
                f"is installed as release {found}, so nobody can tell whether it has a known hole",
                f"{name} {least} or newer",
                f"pip install --force-reinstall '{name}>={least}'",
            ) from None
        if release < Version(least).release:  # a vendor's 2.10.0a0+x has what 2.10 has
            raise EnvironmentProblem(
                f"{name} {found}", why, f"{name} {least} or newer", f"pip install '{name}>={least}'"
            )


def check_address_space() -> None:
    """Raises EnvironmentProblem where a process may not address (`ulimit -v`) what is taken before there is a model."""
    with contextlib.suppress(ImportError):  # Windows has no such limit
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most != resource.RLIM_INFINITY and most < ADDRESS_SPACE:
            raise EnvironmentProblem(
                "ulimit -v",
                f"there is not enough memory: a process may address {most / 1e9:.2f} GB",
                f"{ADDRESS_SPACE / 1e9:.2f} GB, and as much more as the model takes",
                "ulimit -v unlimited",
            )
