"""The look of the report: one sheet, light and dark by what the reader's system prefers, nothing from elsewhere."""

from __future__ import annotations

import html

from luthier.system.streams import visible


def escape(text: str) -> str:
    """Text as a page shows it: what HTML or a browser would obey is written out."""
    return html.escape(visible(text))


STYLE = """
:root {
  color-scheme: light dark; --page: #f7f5f1; --card: #fffefb; --ink: #221d18; --soft: #6b6259; --line: #e2dcd2;
  --accent: #a4501c; --accent-soft: #f6e7da; --good: #2a6b3c; --bad: #a3291c; --before: #efebe4;
  --after: #eaf2ea; --code: #f3efe8; --curve-1: #2d63c8; --curve-2: #c2410c; --curve-3: #2b7a3e;
  --curve-ink: #6b6259; --curve-grid: #ddd6ca;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #171412; --card: #211d1a; --ink: #ece6de; --soft: #a89e93; --line: #39322c; --accent: #eb9a5f;
    --accent-soft: #3a281b; --good: #7cc48f; --bad: #f08a7c; --before: #2a2521; --after: #1f2c23;
    --code: #1b1816; --curve-1: #7ea8f8; --curve-2: #ff9a5c; --curve-3: #74c788; --curve-ink: #a89e93;
    --curve-grid: #39322c;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { overflow-wrap: anywhere;
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif;
}
main, header .in, footer { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
header { border-bottom: 1px solid var(--line); background: var(--card); padding: 34px 0 26px; }
.eyebrow {
  margin: 0; color: var(--accent); font-weight: 650; font-size: .82rem; letter-spacing: .09em;
  text-transform: uppercase;
}
h1 {
  margin: .12em 0 .2em; font-size: clamp(1.7rem, 5vw, 2.5rem); line-height: 1.15; letter-spacing: -.015em;
  overflow-wrap: anywhere;
}
.what { margin: 0; color: var(--soft); overflow-wrap: anywhere; }
.what b { color: var(--ink); font-weight: 600; }
nav { margin-top: 16px; display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: .92rem; }
a { color: var(--accent); text-underline-offset: .18em; }
a:focus-visible, summary:focus-visible, pre:focus-visible, .wide:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 3px;
}
section { margin: 34px 0; }
h2 { font-size: 1.28rem; margin: 0 0 4px; letter-spacing: -.005em; }
h3 { font-size: 1rem; margin: 0 0 6px; }
.hint { margin: 0 0 14px; color: var(--soft); font-size: .94rem; max-width: 68ch; }
.missing { margin: 0; color: var(--soft); font-style: italic; }
.tiles {
  display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 155px), 1fr));
  margin: 26px 0 0; padding: 0;
}
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 13px 16px; }
.tile.lead { grid-column: span 2; background: var(--accent-soft); border-color: transparent; }
.tile dt { color: var(--soft); font-size: .85rem; }
.tile dd {
  margin: 1px 0 0; font-size: 1.38rem; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums;
}
.tile dd small { display: block; font-weight: 450; font-size: .85rem; color: var(--soft); }
.tile.lead dd { font-size: 1.62rem; }
.better { color: var(--good) !important; }
.worse { color: var(--bad) !important; }
.curves { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); align-items: start; }
.curve, .card {
  margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px;
  min-width: 0;
}
.curve figcaption {
  display: flex; flex-wrap: wrap; align-items: baseline; justify-content: space-between; gap: 0 8px;
  margin-bottom: 8px; font-size: .88rem; color: var(--soft);
}
.curve figcaption b { color: var(--ink); font-size: .98rem; margin-right: auto; }
.curve .hit:hover { fill-opacity: .13; }
.card + .card { margin-top: 14px; }
.pair { display: grid; gap: 10px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
.text { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.prompt { font-weight: 600; margin: 0 0 12px; }
.said { border-radius: 9px; padding: 10px 13px; background: var(--before); min-width: 0; }
.said.after { background: var(--after); }
.said h3, .label {
  margin: 0 0 3px; font-size: .78rem; font-weight: 600; letter-spacing: .06em; text-transform: uppercase;
  color: var(--soft);
}
.reference { margin-top: 10px; padding-left: 13px; border-left: 3px solid var(--line); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td {
  text-align: left; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: break-word;
}
tr:last-child > th, tr:last-child > td { border-bottom: 0; }
th { font-weight: 500; color: var(--soft); }
tbody th { white-space: nowrap; }
th.number {
  width: 1%; white-space: nowrap; text-align: right; font-variant-numeric: tabular-nums; padding-right: 20px;
}
thead th { white-space: nowrap; }
td > table { margin: -6px 0; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
details + details { margin-top: 10px; }
summary { cursor: pointer; padding: 11px 16px; font-weight: 600; }
details > .in { padding: 0 16px 13px; }
pre {
  margin: 0; overflow-x: auto; background: var(--code); border-radius: 9px; padding: 13px 15px;
  font: .87rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; tab-size: 2;
}
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
footer { color: var(--soft); font-size: .88rem; padding-bottom: 40px; }
@media (max-width: 620px) {
  tbody th { white-space: normal; }
  .stack > tbody > tr > th, .stack > tbody > tr > td { display: block; padding-right: 0; }
  .stack > tbody > tr > th { border-bottom: 0; padding-bottom: 0; }
  td > table { margin-left: 12px; width: calc(100% - 12px); }
}
@media print {
  body { background: #fff; }
  nav { display: none; }
  .curve, .card, details { break-inside: avoid; }
}
"""
