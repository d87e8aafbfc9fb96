"""What the page on the data has beside the look of all reports: tokens, bars, and a filter over the rows."""

from __future__ import annotations

DATA_STYLE = """
:root { --trained: #1d6b38; --trained-soft: #dcefdd; --special: #8a2d78; --special-soft: #f6e3f1; --faint: #8a8177; }
@media (prefers-color-scheme: dark) {
  :root { --trained: #96dba8; --trained-soft: #1d3626; --special: #e8a1d8; --special-soft: #3a2336; --faint: #8f857a; }
}
.tokens {
  margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: .86rem/1.75 ui-monospace, SFMono-Regular, Menlo,
  Consolas, monospace;
}
.tokens i {
  font-style: normal; padding: .08em .06em; border-radius: 3px; box-decoration-break: clone;
  -webkit-box-decoration-break: clone; box-shadow: inset -1px 0 0 var(--line);
}
.tokens i:hover { outline: 1px solid var(--accent); }
.tokens .trained { background: var(--trained-soft); color: var(--trained); font-weight: 600; }
.tokens .template { color: var(--faint); font-style: italic; }
.tokens .special { background: var(--special-soft); color: var(--special); }
.tokens u { text-decoration: none; opacity: .45; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 0 0 14px; font-size: .9rem; color: var(--soft); }
.legend .tokens { line-height: 1.4; }
.rows article { scroll-margin-top: 12px; }
.rows h3 { display: flex; flex-wrap: wrap; gap: 2px 12px; align-items: baseline; overflow-wrap: anywhere; }
.rows h3 small { font-weight: 450; color: var(--soft); }
.why { display: flex; flex-wrap: wrap; gap: 5px; margin: 0 0 10px; padding: 0; list-style: none; font-size: .82rem; }
.why li { background: var(--accent-soft); border-radius: 99px; padding: 1px 10px; }
.beside { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); }
.beside > div {
  border-radius: 9px; background: var(--code); padding: 10px 13px; min-width: 0; max-height: 26rem; overflow: auto;
}
.beside > div:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
.served { background: none; border: 0; border-radius: 0; margin-top: 8px; }
.served > summary { padding: 0; }
.curves > :only-child { max-width: 640px; }
details + .curves, .card + .curves { margin-top: 14px; }
.lines { margin: 0; padding-left: 1.2em; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.filter { display: flex; flex-wrap: wrap; gap: 10px; align-items: center; margin: 0 0 14px; }
.filter[hidden] { display: none; }
.filter input {
  font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 9px;
  padding: 7px 12px; min-width: min(100%, 320px);
}
.filter input:focus-visible, .rows article:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
.filter output { color: var(--soft); font-size: .9rem; }
.stacked svg { width: 100%; height: 26px; display: block; border-radius: 8px; }
.card + details { margin-top: 10px; }
.stacked ul { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 10px 0 0; padding: 0; }
.stacked + .stacked { margin-top: 18px; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .45em; }
.stacked small, .found small { color: var(--soft); }
.laws { list-style: none; margin: 0; padding: 0; columns: 2 300px; }
.laws li { break-inside: avoid; padding: 3px 0 3px 1.9em; text-indent: -1.9em; }
.laws li::before {
  content: "\\2713"; display: inline-block; width: 1.9em; text-indent: 0; color: var(--good); font-weight: 700;
}
.laws small { display: block; text-indent: 0; color: var(--soft); }
.laws li.broken::before { content: "\\2717"; color: var(--bad); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.spark { width: 72px; height: 24px; display: block; }
.meter { background: var(--line); border-radius: 99px; height: 9px; min-width: 80px; overflow: hidden; }
.meter b { display: block; height: 100%; background: var(--curve-1); border-radius: 99px; }
@media print { .beside > div { max-height: none; } .filter { display: none; } }
.said-row { max-width: 60ch; }
.said-row .text { display: -webkit-box; -webkit-line-clamp: 3; -webkit-box-orient: vertical; overflow: hidden; }
"""

FILTER = """
(function () {
  var box = document.getElementById("filter"), field = document.getElementById("filter-text");
  if (!box || !field) return;
  var count = document.getElementById("filter-count");
  var rows = Array.prototype.slice.call(document.querySelectorAll("[data-row]"));
  function apply() {
    var words = field.value.toLowerCase().split(/\\s+/).filter(Boolean), shown = 0;
    rows.forEach(function (row) {
      var text = row.textContent.replace(/\\u21b5/g, "").toLowerCase();
      var hit = words.every(function (word) { return text.indexOf(word) >= 0; });
      row.hidden = !hit;
      shown += hit ? 1 : 0;
    });
    count.textContent = shown + " of " + rows.length + " rows";
  }
  box.hidden = false;
  field.addEventListener("input", apply);
  field.addEventListener("keydown", function (event) {
    if (event.key === "Escape") { field.value = ""; apply(); }
  });
  apply();
})();
"""
"""Shows the rows whose text has all words of the field. Without scripts the field is not there, and all rows are."""
