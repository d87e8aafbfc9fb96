"""Warnings of other libraries that nobody can act on, or that luthier has said already: left out by their words, and nothing else
with them.
"""

from __future__ import annotations

import logging
import warnings

WARNINGS = (
    r"`is_gradient_checkpointing` is deprecated",
    r"Paged optimizers are not supported on CPU",
)
"""How they begin, as regular expressions."""
LOGGED = (
    "does not support setting its attention implementation dynamically",
    "past_key_values/cache_params are deprecated",
    "`past_key_values`/`cache_params` are deprecated",
    "Failed to load CPU gemm_4bit_forward from kernels-community",
    " thrown while requesting ",
    "Retrying in ",
)
"""What stands in them: models that go by their own way, names that will be others one day, code of a hub that is not fetched, and
each try to reach a hub, of which the last one ends in an error of ours."""
LOGGERS = ("transformers", "peft", "bitsandbytes")
WITHOUT_HANDLER = ("bitsandbytes.backends.cpu.ops", "huggingface_hub.utils._http")
"""They are not imported yet where they are hushed; the first speaks while it is."""


def hush() -> None:
    """Leaves them out from now on. To be called where the libraries are imported; a second time does nothing more."""
    for beginning in WARNINGS:
        warnings.filterwarnings("ignore", message=beginning)
    for name in LOGGERS:
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_is_news)
    for name in WITHOUT_HANDLER:
        logging.getLogger(name).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or not any(words in str(record.msg) for words in LOGGED)
