"""The system text that a result was trained with, as the default of its saved template: whoever asks by plain transformers and
gives none asks as it was trained. luthier takes it off again where it reads such a template: it knows the text by
luthier.json, and may be told to ask without.
"""

from __future__ import annotations

import re

from luthier.data.chat.library import HEADER

BEGIN, END = "{#- the system text of the training, where none is given -#}", "{# end of it #}"
_BLOCK = re.compile(f"(?P<start>\\A)?{re.escape(BEGIN)}.*?{re.escape(END)}{{% endif -?%}}(?(start)\n)")


def with_default_system(source: str, system: str | None) -> str:
    """A template that puts `system` before conversations that have no system text of their own. It is `source` with one
    block more, which changes none of the white space around it.
    """
    if not system:
        return source
    message = f"[{{'role': 'system', 'content': {_literal(system)}}}]"
    test = "not messages or messages[0].role != 'system'"
    block = f"{BEGIN}{{% if {test} %}}{{% set messages = {message} + messages %}}{END}{{% endif "
    header = HEADER.match(source)
    if header is None:
        return f"{block}%}}\n{source}"
    # What the header's end did to the white space behind it is done by the block's.
    return f"{header[0]}{block}{'-' if header[0].endswith('-#}') else ''}%}}{source[header.end() :]}"


def without_default_system(source: str) -> str:
    """What `with_default_system` was given."""
    return _BLOCK.sub("", source, count=1)


def _literal(text: str) -> str:
    """As Jinja reads it, without braces in it that could be taken for its own."""
    for found, written in (
        ("\\", "\\\\"),
        ("'", "\\'"),
        ("\n", "\\n"),
        ("\r", "\\r"),
        ("{", "{' ~ '"),
        ("}", "' ~ '}"),
    ):
        text = text.replace(found, written)
    return f"'{text}'"
