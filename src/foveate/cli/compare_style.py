"""The look of the comparison page: one style sheet, light and dark, nothing fetched from anywhere."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --paper: #fbfaf7; --card: #ffffff; --ink: #1d1f24; --soft: #656872; --line: #e2dfd7;
  --tint: #f3f1ea; --accent: #b4530a; --good: #1a7f4b; --bad: #b3362b; --same: #dcefe3; --other: #f7e2dd;
  --encode: #3d6fb6; --select: #d9822b; --prefill: #7a58b8; --decode: #8f9aa8; --preprocess: #57a6a1;
  --guide: #b0568c; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14161a; --card: #1c1f25; --ink: #e8e6e1; --soft: #9da1ab; --line: #31353d;
  --tint: #23272e; --accent: #f0a35c; --good: #6fcf97; --bad: #f08b80; --same: #1d3a2a; --other: #472722;
  --encode: #6f9fe0; --select: #f0a35c; --prefill: #a98ae0; --decode: #6d7785; --preprocess: #6cc2bc;
  --guide: #d489b5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 44px 0 10px; }
p { margin: 6px 0; max-width: 90ch; }
.soft, .facts dt, small { color: var(--soft); }
.facts { display: flex; flex-wrap: wrap; gap: 6px 28px; margin: 16px 0 0; }
.facts div { display: flex; gap: 8px; } .facts dd { margin: 0; overflow-wrap: anywhere; }
.table { overflow: auto; max-height: 88vh; border: 1px solid var(--line); border-radius: 10px;
  background: var(--card); }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 9px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { vertical-align: bottom; white-space: normal;
  position: sticky; top: 0; z-index: 2; background: var(--tint); font-weight: 600;
  font-size: 13px; color: var(--soft); }
th:first-child, td:first-child, td.left, th.left { text-align: left; }
tbody th { position: sticky; left: 0; z-index: 1; background: var(--card); font-weight: 600;
  white-space: normal; min-width: 172px; max-width: 280px; overflow-wrap: anywhere; }
thead th:first-child { left: 0; z-index: 3; }
tr.full > * { background: var(--tint); }
tr.control th { font-weight: 400; } tr.control th::after { content: "control"; }
tr.control th::after, .tag { margin-left: 8px; font-size: 11px; font-weight: 400; color: var(--soft);
  border: 1px solid var(--line); border-radius: 99px; padding: 1px 7px; white-space: nowrap; }
td.reason { white-space: normal; color: var(--soft); min-width: 280px; }
.range { display: inline-block; position: relative; width: 56px; height: 8px; margin-left: 8px;
  border-radius: 4px; background: var(--line); vertical-align: middle; }
.range i { position: absolute; top: 0; bottom: 0; border-radius: 4px; background: var(--accent);
  opacity: .32; }
.range b { position: absolute; top: -2px; bottom: -2px; width: 3px; margin-left: -1.5px;
  border-radius: 2px; background: var(--accent); }
.bar { display: flex; width: 120px; height: 12px; border-radius: 3px; overflow: hidden; }
.bar i { height: 100%; }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 10px 0 0; font-size: 13px; color: var(--soft); }
.key i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }
.encode { background: var(--encode); } .select { background: var(--select); }
.prefill { background: var(--prefill); } .decode { background: var(--decode); }
.preprocess { background: var(--preprocess); } .guide { background: var(--guide); }
details { border: 1px solid var(--line); border-radius: 10px; background: var(--card); margin: 12px 0; }
summary { cursor: pointer; padding: 12px 16px; display: flex; flex-wrap: wrap; gap: 2px 14px;
  align-items: baseline; list-style: none; }
summary::-webkit-details-marker { display: none; }
summary::before { content: "\\25B8"; color: var(--soft); transition: transform .15s; }
details[open] > summary::before { transform: rotate(90deg); }
summary b { overflow-wrap: anywhere; }
.grid { display: grid; gap: 18px 14px; padding: 4px 16px 18px;
  grid-template-columns: repeat(auto-fill, minmax(158px, 1fr)); }
figure { margin: 0; min-width: 0; }
figure img { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 6px; display: block;
  background: var(--tint); border: 1px solid var(--line); }
.none { aspect-ratio: 1; border-radius: 6px; border: 1px dashed var(--line); color: var(--soft);
  padding: 12px; font-size: 12px; overflow: auto; background: var(--tint); }
figcaption { font-size: 13px; line-height: 1.4; margin-top: 6px; overflow-wrap: anywhere; }
figcaption b { display: block; }
.answer { display: inline-block; margin-top: 4px; padding: 1px 7px; border-radius: 5px;
  background: var(--tint); color: var(--ink); white-space: pre-wrap; max-width: 100%; }
.answer.same { background: var(--same); } .answer.other { background: var(--other); }
.right { color: var(--good); } .wrong { color: var(--bad); }
dl.methods { display: grid; grid-template-columns: minmax(130px, max-content) 1fr; gap: 8px 20px; }
dl.methods dt { font-weight: 600; overflow-wrap: anywhere; } dl.methods dd { margin: 0; }
@media (max-width: 620px) { main { padding: 20px 12px 48px; }
  dl.methods { grid-template-columns: 1fr; gap: 2px; } dl.methods dd { margin-bottom: 10px; }
  .grid { grid-template-columns: repeat(2, 1fr); padding: 4px 10px 14px; } }
@media print { .table { max-height: none; } details { break-inside: avoid; } }
"""
