"""S17 to S20, S22, S23: luthier has no server, no page that takes requests, and fetches no media. Whoever adds one of them has to answer
the list in docs/security.md: these tests are where that begins."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from luthier.cli import command_names
from luthier.errors import BadRow, LuthierError
from luthier.formats.messages import Messages
from luthier.types import Row
from tests.test_architecture import TREES, name_of

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


def imported(tree: ast.AST) -> set[str]:
    names = set[str]()
    for node in ast.walk(tree):
        names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names | {name.partition(".")[0] for name in names}


def test_s17_nothing_listens() -> None:
    """So there is no address to bind (S17), no route to guard (S18), no Host to check (S19) and no request to limit (S23)."""
    wrong = [f"{name_of(path)}: {name}" for path, tree in TREES.items() for name in sorted(imported(tree) & SERVERS)]
    for path, tree in TREES.items():
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
        found = [f"{name_of(path)}:{node.lineno}" for node in calls if getattr(node.func, "attr", "") in STARTS]
        wrong += found if name_of(path) != ASKS_ITS_OWN_ENGINE else []
    assert not wrong, "a server: answer S17, S18, S19, S22 and S23 in docs/security.md, each with a test"
    assert not {"serve", "ui", "web", "api", "gui", "app", "studio"} & set(command_names())


def test_s20_nothing_is_fetched_by_an_address_in_a_row() -> None:
    """There is no client of a network in luthier: models and data come by the hubs' own, by names that the user writes."""
    found = {name_of(path) for path, tree in TREES.items() if imported(tree) & CLIENTS} - {ASKS_ITS_OWN_ENGINE}
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
    pages = [path for path in TREES if name_of(path).startswith("reporting/")]
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
