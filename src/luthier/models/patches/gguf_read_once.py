"""`gguf.GGUFReader` reads a file once while it is converted.

transformers makes one for the configuration, for the tokenizer and for the weights (4 s each, where the vocabulary has 49,152
tokens), and the table of the tensors' names anew for each of the model's modules: together half of the conversion's time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock

import gguf

_REPEATED = ("GGUFReader", "get_tensor_name_map")
"""What transformers imports of the library at each call."""
_ONE_AT_A_TIME = Lock()


@contextmanager
def gguf_read_once() -> Iterator[None]:
    """Inside, a second reader of the same path is the first one, and so is a second table of names."""
    with _ONE_AT_A_TIME:
        plain = {name: getattr(gguf, name) for name in _REPEATED}
        for name, function in plain.items():
            setattr(gguf, name, cache(function))
        try:
            yield
        finally:
            for name, function in plain.items():
                setattr(gguf, name, function)
