"""atheris on the configuration: the YAML reader, and the words of a command line. Run as a program, which ends after the seconds
that it is given; it fails with what it was given."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["luthier.config", "ruamel.yaml"]):
    from luthier import config
    from luthier.config.documents import parse_yaml
    from luthier.errors import LuthierError
    from luthier.system.streams import visible


def one(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        if data[:1] == b"=":
            config.load(None, ["model=x", "data=d.jsonl", *text[1:].split("\0")])
        else:
            config.build(parse_yaml(text, "mine.yaml"))
    except LuthierError as error:
        visible(str(error)).encode()


if __name__ == "__main__":
    seconds, corpus = sys.argv[1:]
    atheris.Setup(
        [sys.argv[0], f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=2048", "-max_len=4096", corpus], one
    )
    atheris.Fuzz()
