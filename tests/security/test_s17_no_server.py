"""S17 to S20, S22, S23: luthier has no server, no page that takes requests, and fetches no media. Whoever adds one of them has to answer
the list in docs/security.md: these tests are where that begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.cli import command_names
from luthier.errors import BadRow, LuthierError
from luthier.formats.messages import Messages
from luthier.types import Row
from tests.security.code import calls, imported
from tests.test_architecture import FILES, name_of

SERVERS = {
    *("aiohttp", "bottle", "cherrypy", "falcon", "fastapi", "flask", "gradio", "gunicorn", "http.server", "hypercorn"),
    *(
        "litestar",
        "quart",
        "sanic",
        "selectors",
        "socket",
        "socketserver",
        "starlette",
        "streamlit",
        "tornado",
        "uvicorn",
    ),
    *("waitress", "websockets", "werkzeug", "wsgiref", "xmlrpc", "zmq", "grpc"),
}
STARTS = ("listen", "bind", "serve_forever", "start_server", "create_server", "Server")
CLIENTS = {
    "urllib.request",
    "urllib3",
    "http.client",
    "httpx",
    "requests",
    "aiohttp",
    "ftplib",
    "smtplib",
    "telnetlib",
    "pycurl",
}
ASKS_ITS_OWN_ENGINE = "inference/served_child.py"
"""Starts llama.cpp's server on loopback, for one question, in a child that ends with it: luthier itself listens nowhere. Where it
listens is seen in test_s16_network.py."""


def test_s17_nothing_listens() -> None:
    """So there is no address to bind (S17), no route to guard (S18), no Host to check (S19) and no request to limit (S23)."""
    found = [f"{file} imports {name}" for file, name in imported() if name in SERVERS]
    found += [f"{file}:{call.lineno}" for file, call in calls(*STARTS) if file != ASKS_ITS_OWN_ENGINE]
    assert not found, "a server: answer S17, S18, S19, S22 and S23 in docs/security.md, each with a test"
    assert not {"serve", "ui", "web", "api", "gui", "app", "studio"} & set(command_names())


def test_s20_nothing_is_fetched_by_an_address_in_a_row() -> None:
    """There is no client of a network in luthier: models and data come by the hubs' own, by names that the user writes."""
    found = {file for file, name in imported() if name in CLIENTS} - {ASKS_ITS_OWN_ENGINE}
    allowed = {"models/sources/resolve.py"}  # the class of ModelScope's errors
    assert found <= allowed, "a client: answer S20 in docs/security.md, with its 25 hostile addresses"


ADDRESSES = (
    "http://127.1/x.png",
    "http://169.254.169.254/latest/meta-data",
    "file:///etc/passwd",
    "gopher://x",
    "a.png",
)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("kind", ["image_url", "image", "video", "audio", "input_audio"])
def test_s20_media_in_a_message_is_refused(kind: str, address: str) -> None:
    content = [{"type": "text", "text": "Look."}, {"type": kind, kind: {"url": address}}]
    row = Row(
        {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}]}, "a.jsonl", 1
    )
    with pytest.raises(LuthierError):
        Messages(Messages.Config(kind="messages")).parse(row)


@pytest.mark.parametrize("column", ["images", "image", "videos", "audios"])
def test_s20_media_beside_a_message_is_refused(column: str) -> None:
    messages = [{"role": "user", "content": "Look."}, {"role": "assistant", "content": "Yes."}]
    row = Row({"messages": messages, column: [ADDRESSES[1]]}, "a.jsonl", 1)
    with pytest.raises(BadRow, match=column):
        Messages(Messages.Config(kind="messages")).parse(row)


def test_s22_pages_take_nothing() -> None:
    """The reports are files: they hold no form, ask no address, and run only their own script."""
    pages = [path for path in FILES if name_of(path).startswith("reporting/")]
    assert pages
    for path in pages:
        text = Path(path).read_text(encoding="utf-8")
        for word in (
            "<form",
            '<input type="file',
            "fetch(",
            "XMLHttpRequest",
            "WebSocket",
            "<iframe",
            "http://",
            'src="http',
        ):
            assert word not in text.replace('xmlns="http://www.w3.org', ""), f"{path}: {word}"
