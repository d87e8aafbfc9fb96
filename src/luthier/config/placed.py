"""Where in a configuration's file stands what is found wrong with the data later."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.config.documents import read_yaml
from luthier.config.plain_yaml import OF_A_RUN
from luthier.errors import UserError

KEY = re.compile(r"data\.(\w+)(?:\[(\d+)\])?(?:\.path)?: (.*)")


@contextmanager
def placed(path: Path | None) -> Iterator[None]:
    """What is found wrong with a file or a template gets the line that names it, where the configuration's file does."""
    try:
        yield
    except UserError as error:
        named = KEY.fullmatch(error.where)
        if path is not None and named is not None:
            document = read_yaml(path, OF_A_RUN)
            key = ("data", named[1], *([int(named[2])] if named[2] else []))
            if named[3] in _texts_at(document.tree, key):
                error.where = f"{document.place(key)}: {error.where}"
        raise


def _texts_at(tree: Any, path: Sequence[str | int]) -> list[Any]:
    """What a file has at a place, where it may have a list, a map or a text."""
    for part in path:
        is_there = part in tree if isinstance(tree, Mapping) else isinstance(part, int) and isinstance(tree, list)
        tree = tree[part] if is_there else tree
    return list(tree.values()) if isinstance(tree, Mapping) else [tree]
