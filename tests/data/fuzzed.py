"""Real files with seeded damage, given to what reads them, for a while: nothing but our own errors may come of it.

What is fuzzed runs in forks of the process, so a crash is a failure and not the end of the tests. FUZZ_SECONDS says for how long
(each target; 600 where it is proven in full), FUZZ_SEED where it begins.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from luthier.errors import EnvironmentProblem, UserError

SECONDS = float(os.environ.get("FUZZ_SECONDS", "4"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
MOST_S = 20
MOST_BYTES = 2 << 30
WORDS = (
    b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xff" * 8, b"\0" * 8, b"\xff" * 7 + b"\x7f", b"\n", b"\r",
    b'"', b"[", b"]", b"{", b"}", b",", b":", b"\\", b"\\ud800", b"NaN", b"1e999", b"-1", b"9" * 400, b"null", b"true", b"[]",
    b"{}", b"\t", b"{{", b"}}", b"{%", b"%}", b"{#", b"'", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"<", b"../", b"/",
)  # fmt: skip


def mutated(draw: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds with some damage."""
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8, 30))):
        at = draw.randrange(len(data) + 1)
        if draw.random() < 0.3:  # headers and footers are where files are understood
            at = draw.choice((draw.randrange(min(len(data), 200) + 1), max(0, len(data) - draw.randrange(300))))
        end = min(len(data), at + draw.choice((1, 1, 2, 4, 8, 30, 400)))
        what = draw.randrange(7)
        if what == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif what == 1:
            data[at:at] = draw.choice(WORDS) * draw.choice((1, 1, 1, 2, 300))
        elif what == 2:
            word = draw.choice(WORDS)
            data[at : at + len(word)] = word
        elif what == 3:
            del data[at:end]
        elif what == 4:
            data[at:at] = data[at:end] * draw.choice((1, 2, 50))
        elif what == 5:
            other = draw.choice(seeds)
            begin = draw.randrange(len(other) + 1)
            data[at:end] = other[begin : begin + (end - at)]
        elif draw.random() < 0.3:
            del data[at:]
    return bytes(data)


def fuzz(use: Callable[[Path], object], path: Path, seeds: Sequence[bytes], name: str, seconds: float = SECONDS) -> int:
    """Gives damaged files to `use` for some seconds; how many.

    Raises:
        AssertionError: one ended in anything but one of our errors, took too long, or too much memory.
    """
    for seed in seeds:  # as they are they are read
        path.write_bytes(seed)
        use(path)
    screen, count_file = path.with_suffix(".screen"), path.with_suffix(".count")
    child = os.fork()
    if child == 0:
        _work(use, path, seeds, name, seconds, screen, count_file)
    _, status, used = os.wait4(child, 0)
    said = screen.read_text(encoding="utf-8", errors="replace") if screen.exists() else ""
    code = os.waitstatus_to_exitcode(status)
    assert code == 0, f"{name}: ended by {code} over {path} (seed {SEED})\n{said[-4000:]}"
    assert used.ru_maxrss * 1024 < MOST_BYTES, f"{name}: {used.ru_maxrss >> 10:,} MB"
    return int(count_file.read_text())


def _work(
    use: Callable[[Path], object],
    path: Path,
    seeds: Sequence[bytes],
    name: str,
    seconds: float,
    screen: Path,
    count_file: Path,
) -> None:
    """The whole life of a fork."""
    code, count = 1, 0
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MOST_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        draw, until = random.Random(f"{name} {SEED}"), time.monotonic() + seconds
        while time.monotonic() < until:
            path.write_bytes(mutated(draw, seeds))
            signal.alarm(MOST_S)
            with contextlib.suppress(UserError, EnvironmentProblem):
                use(path)
            signal.alarm(0)
            count += 1
        count_file.write_text(str(count))
        code = 0
    finally:
        if code:
            screen.write_text(traceback.format_exc(), encoding="utf-8", errors="replace")
        os._exit(code)
