"""Warnings of other libraries that nobody can act on are left out, by their words; all others come through."""

from __future__ import annotations

import logging
import warnings

import pytest
from huggingface_hub import errors
from huggingface_hub.utils import http_backoff
from transformers.utils import logging as of_transformers

from luthier.system.quiet import LOGGED, WITHOUT_HANDLER, hush


def test_known_words_are_left_out_and_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    of_transformers.get_logger("transformers.made")
    shown = list[str]()
    handler = logging.getLogger("transformers").handlers[0]
    hush()
    hush()
    log = logging.getLogger("transformers.made")
    for words in (*LOGGED, "something else"):
        record = log.makeRecord(log.name, logging.WARNING, "", 0, f"Made {words} now", (), None)
        shown += [record.getMessage()] if handler.filter(record) else []
    assert shown == ["Made something else now"]
    fault = log.makeRecord(log.name, logging.ERROR, "", 0, LOGGED[0], (), None)
    assert handler.filter(fault)


def test_known_warnings_are_left_out_and_no_others() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hush()
        warnings.warn("`is_gradient_checkpointing` is deprecated and will be removed", FutureWarning, stacklevel=1)
        warnings.warn("Paged optimizers are not supported on CPU. Falling back", UserWarning, stacklevel=1)
        warnings.warn("the disk is full", UserWarning, stacklevel=1)
    assert [str(one.message) for one in caught] == ["the disk is full"]


def test_nothing_is_said_of_kernels_that_are_not_fetched() -> None:
    hush()
    log = logging.getLogger(WITHOUT_HANDLER[0])
    words = "Failed to load CPU gemm_4bit_forward from kernels-community: %s."
    assert not log.filter(log.makeRecord(log.name, logging.WARNING, "", 0, words, ("halted",), None))
    assert log.filter(log.makeRecord(log.name, logging.WARNING, "", 0, "the processor is none", (), None))


def test_tries_to_reach_a_hub_are_not_listed(caplog: pytest.LogCaptureFixture) -> None:
    hush()
    with caplog.at_level(logging.WARNING), pytest.raises(errors.HTTPError):  # type: ignore[attr-defined]
        http_backoff("GET", "http://127.0.0.1:9/models", max_retries=2, base_wait_time=0.01)
    assert [record.getMessage() for record in caplog.records] == []
