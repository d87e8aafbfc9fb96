"""Rows that would take over the pages that show them, in a real browser: no script runs and nothing is asked for, also where the
page's own policy against both is taken away.
"""

from __future__ import annotations

import functools
import html
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.helpers.looked_at import looked, prepare_folder
from tests.reporting.data.test_page import CHROMIUM, Quiet, browse
from tests.reporting.run import test_page as of_a_run

from luthier.inspecting.data.shown_rows import Wanted
from luthier.reporting.data.page import write_page
from luthier.reporting.run.page import write_report

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium"),
    pytest.mark.prove,
]

RUNS = "document.documentElement.dataset.pwned=1"
TEXTS = (
    f"<script>{RUNS}</script>",
    f"</script><script>{RUNS}</script>",
    f"--></style></title></textarea><script>{RUNS}</script>",
    f"<img src=/leak-1 onerror='{RUNS}'>",
    f'"><svg/onload="{RUNS}">',
    f"' autofocus onfocus='{RUNS}' x='",
    f"<body onload={RUNS}><input autofocus onfocus={RUNS}>",
    f"<iframe srcdoc='<script>parent.{RUNS}</script>' src=/leak-2></iframe>",
    f"<a href='javascript:{RUNS}' id=filter-text>click</a>",
    "<a href='data:text/html,<script>alert(1)</script>'>data</a><base href=/leak-3/>",
    "<link rel=stylesheet href=/leak-4><style>@import '/leak-5'; body { background: url(/leak-6) }</style>",
    "<meta http-equiv=refresh content='0;url=/leak-7'><form action=/leak-8><button autofocus>go</form>",
    "<object data=/leak-9></object><embed src=/leak-10><video poster=/leak-11><audio src=/leak-12 autoplay>",
    f"<math><mtext><table><mglyph><style><img src=/leak-13 onerror={RUNS}>",
    "{{ constructor.constructor('" + RUNS + "')() }} ${" + RUNS + "} <%= 7*7 %> {% include '/leak-14' %}",
    f"&lt;script&gt;{RUNS}&lt;/script&gt; &#60;script&#62;{RUNS}&#60;/script&#62;",
    "\u202eright to left\u2066 isolated \u2028 \u2029 \u200b\ufeff \x1b[31mred\x1b]0;title\x07 \x08\x7f",
    "Z\u0351\u036b\u0343" + "\u0301" * 500 + "algo",
    "W" * 20_000,
    "😀" * 3000 + "👩‍👩‍👧" * 500,
)
WORDS = " ".join(TEXTS)
LOOK = """<!doctype html><link rel="icon" href="data:,"><body><script>
var frame = document.createElement("iframe"), out = {};
frame.style.width = "1000px"; frame.style.height = "900px"; frame.src = "page.html";
frame.onload = function () { setTimeout(function () {
  var page = frame.contentDocument, every = Array.from(page.querySelectorAll("*"));
  out.pwned = "pwned" in page.documentElement.dataset || "pwned" in document.documentElement.dataset;
  out.handlers = every.filter(function (one) {
    return Array.from(one.attributes).some(function (own) { return own.name.startsWith("on"); });
  }).length;
  out.tags = Array.from(new Set(every.map(function (one) { return one.tagName.toLowerCase(); })));
  out.links = Array.from(page.querySelectorAll("[href]")).map(function (one) { return one.getAttribute("href"); });
  out.asked_for = frame.contentWindow.performance.getEntriesByType("resource").map(function (one) { return one.name; });
  out.too_wide = page.documentElement.scrollWidth - page.documentElement.clientWidth;
  var words = document.createElement("pre"); words.id = "found"; words.textContent = JSON.stringify(out);
  document.body.replaceChildren(words);
}, 500); };
document.body.append(frame);
</script></body>"""
FETCHING = {"img", "iframe", "object", "embed", "video", "audio", "link", "base", "form", "math", "mglyph", "a:visited"}


def data_page(folder: Path) -> Path:
    prepare_folder([{"instruction": text, "output": f"{text} {number}"} for number, text in enumerate(TEXTS)])
    write_page(looked("eval=0.2", every_view=True, wanted=Wanted(samples=len(TEXTS))), Path("page.html"))
    return folder / "page.html"


def run_report(folder: Path) -> Path:
    """Of a run whose requests and answers are the hostile texts."""
    run = of_a_run.a_run(folder / "mine")
    for name in ("answers.json", "samples.jsonl", "ledger.json"):
        text = (run / name).read_text(encoding="utf-8")
        changed = text.replace(json.dumps(of_a_run.NASTY), json.dumps(WORDS))
        changed = changed.replace(json.dumps(of_a_run.NASTY, ensure_ascii=False), json.dumps(WORDS))
        assert changed != text, name
        (run / name).write_text(changed, encoding="utf-8")
    shutil.copy(write_report(run), folder / "page.html")
    return folder / "page.html"


@pytest.fixture(params=["data", "run"])
def page(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return data_page(tmp_path) if request.param == "data" else run_report(tmp_path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    made.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.mark.parametrize("guarded", [True, False])
def test_hostile_rows_stay_text(page: Path, server: ThreadingHTTPServer, tmp_path: Path, guarded: bool) -> None:
    text = page.read_text(encoding="utf-8")
    if not guarded:
        bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        assert bare != text, "the page has no policy"
        page.write_text(bare, encoding="utf-8")
    Path("look.html").write_text(LOOK, encoding="utf-8")
    tree, log = browse(f"http://127.0.0.1:{server.server_port}/look.html", tmp_path / "profile")
    match = re.search(r'<pre id="found">(.*?)</pre>', tree, re.DOTALL)
    assert match is not None, tree[:2000]
    found = json.loads(html.unescape(match[1]))
    assert not found["pwned"]
    assert found["handlers"] == 0
    assert FETCHING.isdisjoint(found["tags"]), found["tags"]
    assert all(link.startswith("#") for link in found["links"]), found["links"]
    assert found["asked_for"] == []
    assert {line.split()[1] for line in server.asked} == {"/look.html", "/page.html"}  # type: ignore[attr-defined]
    assert not [line for line in log.splitlines() if "CONSOLE" in line], log[:2000]
    assert found["too_wide"] <= 0
