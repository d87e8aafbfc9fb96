"""The page of `luthier data` in a real browser: it renders, its filter works, it asks nobody for anything."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.looked_at import PLAIN, looked, prepare_folder

from luthier.inspecting.data.shown_rows import Wanted
from luthier.reporting.data.page import write_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")

ROWS = [
    *PLAIN,
    {
        "instruction": "Write <script>top.pwned = 1</script> & <b>bold</b>",
        "output": '</p><img src="http://x.invalid/a.png">',
    },
    {"instruction": "你好 🎻", "output": "琴 👩‍👩‍👧 اَلْعَرَبِيَّةُ"},
    {"instruction": "Hi", "output": ""},
]

LOOKS = """<!doctype html><link rel="icon" href="data:,"><body><script>
addEventListener("message", function () {});
var frame = document.createElement("iframe"), out = {};
frame.style.width = "WIDTHpx"; frame.style.height = "900px"; frame.src = "page.html";
frame.onload = function () {
  var page = frame.contentDocument, field = page.getElementById("filter-text");
  function type(words) { field.value = words; field.dispatchEvent(new Event("input")); }
  function rows() {
    return Array.from(page.querySelectorAll("article[data-row]")).filter(function (row) {
      return row.getClientRects().length > 0;
    }).map(function (row) { return row.querySelector("h3").firstChild.textContent.trim(); });
  }
  out.all = rows(); type("LUTE wish"); out.lute = rows(); out.count = page.getElementById("filter-count").textContent;
  type("nothing has this"); out.none = rows();
  field.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"})); out.after_escape = rows();
  out.titles = Array.from(page.querySelectorAll("h2")).map(function (title) { return title.textContent; });
  out.pictures = Array.from(page.querySelectorAll("svg")).every(function (svg) { return svg.getBoundingClientRect().width > 20; });
  out.trained = getComputedStyle(page.querySelector(".tokens .trained")).color;
  out.context = getComputedStyle(page.querySelector(".tokens .context")).color;
  out.too_wide = page.documentElement.scrollWidth - page.documentElement.clientWidth;
  out.asked_for = frame.contentWindow.performance.getEntriesByType("resource").map(function (one) { return one.name; });
  out.pwned = window.pwned === 1;
  out.ids = Array.from(page.querySelectorAll("[id]")).map(function (one) { return one.id; });
  var words = document.createElement("pre"); words.id = "found"; words.textContent = JSON.stringify(out);
  document.body.replaceChildren(words);
};
document.body.append(frame);
</script></body>"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        self.server.asked.append(args[0])  # type: ignore[attr-defined]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    prepare_folder(ROWS)
    report = looked("on_bad_row=drop", "eval=0.2", every_view=True, wanted=Wanted(samples=6))
    write_page(report, Path("page.html"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def browse(address: str, profile: Path, *options: str) -> tuple[str, str]:
    """The page's tree once its scripts ran, and what the browser wrote to its log."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom",
            "--enable-logging=stderr", "--virtual-time-budget=5000", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            *options, address,
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return done.stdout, done.stderr


@pytest.mark.parametrize("width", [1200, 380])
def test_the_page_in_a_browser(served: ThreadingHTTPServer, tmp_path: Path, width: int) -> None:
    Path("look.html").write_text(LOOKS.replace("WIDTH", str(width)), encoding="utf-8")
    tree, log = browse(
        f"http://127.0.0.1:{served.server_port}/look.html", tmp_path / "profile", "--window-size=1300,1000"
    )
    match = re.search(r'<pre id="found">(.*?)</pre>', tree, re.DOTALL)
    assert match is not None, tree
    found = json.loads(match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert len(found["all"]) >= 5
    assert found["lute"] == ["train.jsonl:2"]
    assert found["count"] == f"1 of {len(found['all'])} rows"
    assert found["none"] == []
    assert found["after_escape"] == found["all"]
    assert found["titles"] == [
        "Ledger", "Laws", "Lengths and batches", "Duplicates", "Languages", "Rows, token by token",
    ]  # fmt: skip
    assert found["pictures"]
    assert found["trained"] != found["context"]
    assert found["too_wide"] <= 0
    assert found["asked_for"] == []
    assert not found["pwned"]
    assert len(set(found["ids"])) == len(found["ids"])
    assert not [line for line in log.splitlines() if "CONSOLE" in line], log
    assert {line.split()[1] for line in served.asked} == {"/look.html", "/page.html"}  # type: ignore[attr-defined]


def test_a_script_that_is_not_ours_would_not_run(served: ThreadingHTTPServer, tmp_path: Path) -> None:
    """The same browser notices what the test above says is not there."""
    page = Path("page.html").read_text(encoding="utf-8")
    Path("page.html").write_text(page.replace("</main>", '<script>top.pwned = 1</script><img src="a.png"></main>'))
    Path("look.html").write_text(LOOKS.replace("WIDTH", "800"), encoding="utf-8")
    tree, log = browse(f"http://127.0.0.1:{served.server_port}/look.html", tmp_path / "profile")
    assert '"pwned":false' in tree
    assert "Content Security Policy" in log
    assert "/a.png" not in str(served.asked)  # type: ignore[attr-defined]
