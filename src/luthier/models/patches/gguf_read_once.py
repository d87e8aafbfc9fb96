"""`gguf.GGUFReader` reads a file once while it is converted, and not beyond its end.

transformers makes one for the configuration, for the tokenizer and for the weights (4 s each, where the vocabulary has 49,152
tokens), and the table of the tensors' names anew for each of the model's modules: together half of the conversion's time.

The library's own reader goes on behind the end of a file, where all that it reads is empty: a list of which a damaged length says
that it has 10^18 entries never ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import gguf
from gguf import GGUFValueType

_REPEATED = ("GGUFReader", "get_tensor_name_map")
"""What transformers imports of the library at each call."""
_ONE_AT_A_TIME = Lock()
MOST_ENTRIES = 1 << 20
"""Of a list: the largest vocabularies have 900,000. Each is several objects in memory, and takes the library microseconds."""


class WholeReader(gguf.GGUFReader):
    """Raises ValueError where a file is cut off, or a list is longer than any."""

    def _get(self, offset: int, dtype: Any, count: int = 1, *rest: Any, **named: Any) -> Any:
        found = super()._get(offset, dtype, count, *rest, **named)
        if len(found) < count:
            raise ValueError(f"it ends at byte {len(self.data):,}, within what is read at {offset:,}")
        return found

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == GGUFValueType.ARRAY and (entries := int(self._get(orig_offs + 4, "u8")[0])) > MOST_ENTRIES:
            raise ValueError(f"a list of {entries:,} entries at byte {orig_offs:,}")
        return super()._get_field_parts(orig_offs, raw_type)


@contextmanager
def gguf_read_once() -> Iterator[None]:
    """Inside, readers are whole, a second one of the same path is the first one, and so is a second table of names."""
    with _ONE_AT_A_TIME:
        plain = {name: getattr(gguf, name) for name in _REPEATED}
        for name, function in (plain | {"GGUFReader": WholeReader}).items():
            setattr(gguf, name, cache(function))
        try:
            yield
        finally:
            for name, function in plain.items():
                setattr(gguf, name, function)
