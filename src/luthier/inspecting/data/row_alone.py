"""The row that is asked for, without anything else. It needs the tokenizer, for which transformers imports torch where there is
one: most of the time that a person would wait.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict

from pydantic import TypeAdapter

from luthier import component
from luthier.config import RunConfig
from luthier.data.chat.renderer import ChatRenderer
from luthier.data.dataset.prepare import choose_template
from luthier.data.dataset.workers import Encoding, can_fork, limit_of
from luthier.inspecting.data.one_row import Called, look_at
from luthier.inspecting.data.shown_row import ShownRow
from luthier.models.reading import add_tokens, context_length, load_config, load_tokenizer
from luthier.models.source import ModelSource

_ROWS = TypeAdapter(list[ShownRow])


def row_alone(
    config: RunConfig, source: ModelSource, called: Sequence[Called], trust_remote_code: bool
) -> list[ShownRow]:
    """The rows that have a name, each with what becomes of it; `source` is the model's."""

    def rows() -> list[ShownRow]:
        return _rows(config, source, called, trust_remote_code)

    quick = None if trust_remote_code else without_torch(rows)
    return rows() if quick is None else quick


def _rows(config: RunConfig, source: ModelSource, called: Sequence[Called], trust_remote_code: bool) -> list[ShownRow]:
    tokenizer = load_tokenizer(source.words, trust_remote_code)
    add_tokens(tokenizer, config.data.add_tokens)
    objective = component.make("objectives", config.objective)
    template = choose_template(tokenizer, config.data)
    limit = limit_of(config.data, context_length(load_config(source.folder, trust_remote_code)))
    try:
        encoding = Encoding(config.data, ChatRenderer(tokenizer, template), objective, limit)
        return [row for one in called for row in look_at(one, encoding)]
    finally:
        if template is not None:
            template.close()


def without_torch(rows: Callable[[], list[ShownRow]]) -> list[ShownRow] | None:
    """What `rows` returns, in a child of this process for which torch is not there: its tokenizers are the same without it.
    None where that fails, for whatever reason, or torch is imported already: then it is to be called here.
    """
    if not can_fork() or not {"torch", "transformers"}.isdisjoint(sys.modules):
        return None
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reads)
            _be_silent()
            sys.modules["torch"] = None  # type: ignore[assignment]
            with os.fdopen(writes, "wb") as pipe:
                pipe.write(json.dumps([asdict(row) for row in rows()]).encode())
            code = 0
        finally:
            os._exit(code)  # before anything of the parent's is flushed or ended here
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return _ROWS.validate_python(json.loads(said)) if status == 0 else None


def _be_silent() -> None:
    """Nothing of this process reaches the screen: what is wrong is said by the one that does it again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
