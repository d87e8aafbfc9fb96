"""A fuzzer that sees which lines are reached finds no configuration that ends in anything but our errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.config.hostile import FILES, WORDS

SECONDS = int(os.environ.get("FUZZ_SECONDS", "20"))
"""600 where a release is proven."""

pytest.importorskip("atheris", reason="atheris has no wheel for this machine")


@pytest.mark.prove
def test_no_bytes_raise_anything_but_our_errors(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    seeds = [*FILES.values(), *(b"=" + "\0".join(words).encode("utf-8", "replace") for words in WORDS.values())]
    for number, seed in enumerate(seed for seed in seeds if len(seed) < 4_096):
        (corpus / f"{number:03}").write_bytes(seed)
    done = subprocess.run(
        [sys.executable, "-m", "tests.config.fuzzed", str(SECONDS), str(corpus)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
        timeout=SECONDS + 120,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3_000:]
