"""A data check as one self-contained page: no script, no request, readable on a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunery.data import CheckResult, Finding, SplitStats

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2024;--dim:#60646c;--line:#d9d9e0;--page:#fff;--bar:#3e63dd;
--error:#ce2c31;--warning:#ab6400;--note:#60646c}
@media(prefers-color-scheme:dark){:root{--ink:#edeef0;--dim:#b0b4ba;--line:#43484e;--page:#111113;--bar:#849dff;
--error:#ff9592;--warning:#ffca16;--note:#b0b4ba}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:60rem;margin:0 auto;
padding:1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}
th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.finding{border-left:4px solid;padding:.1rem 0 .1rem .8rem;margin:.8rem 0;overflow-wrap:anywhere}
.error{border-color:var(--error)}.warning{border-color:var(--warning)}.note{border-color:var(--line)}
.error b{color:var(--error)}.warning b{color:var(--warning)}.note b{color:var(--note)}
code,li{font:.85rem/1.5 ui-monospace,monospace;overflow-wrap:anywhere}ul{margin:.3rem 0;padding-left:1.1rem}
.dim{color:var(--dim)}svg{max-width:100%;height:auto}svg text{fill:var(--dim);font:13px system-ui,sans-serif}
svg rect{fill:var(--bar)}svg line{stroke:var(--error);stroke-width:4}
@media(max-width:40rem){svg text{font-size:22px}
.attributes tr{display:grid;grid-template-columns:minmax(0,1fr) 4.5rem 4.5rem}
.attributes td,.attributes th{border:0;padding:.2rem 0;overflow-wrap:anywhere}
.attributes tr{border-bottom:1px solid var(--line)}
.attributes :nth-child(4){grid-column:1/-1;color:var(--dim)}}
"""
_READ = (
    "read = kept + dropped; what is dropped is no example, as a finding below says. Distinct inputs differ by more "
    "than case and white space. Lengths are of prompt and output together."
)
_COUNT = "How often each stands in the outputs, and its most frequent values; (none): it stands there without a value."


def page(result: CheckResult, title: str) -> str:
    """The page of a check, as HTML."""
    verdict = "Nothing stops training." if result.ok else "There are errors: training would stop."
    findings = "".join(_finding(f) for f in result.findings) or "<p>No faults found.</p>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        # Rows are shown as text; this holds even if one were not escaped.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n<h1>{escape(title)}</h1><p>{verdict}</p>\n"
        f"{_splits(result.splits)}<h2>Findings</h2>{findings}\n"
        + "".join(_lengths(s, result.cutoff_len) + _attributes(s) for s in result.splits)
        + "</body></html>\n"
    )


def _table(rows: Sequence[Sequence[Any]], right: int = 0, kind: str = "") -> str:
    """A table, its first row the head, its columns from the second on numbers, `right` of them."""

    def cell(tag: str, i: int, value: Any) -> str:
        text = f"{value:,}" if isinstance(value, int) else str(value)
        return f"<{tag}{' class=n' if 0 < i <= right else ''}>{escape(text)}</{tag}>"

    lines = [("td" if at else "th", row) for at, row in enumerate(rows)]
    body = "".join(f"<tr>{''.join(cell(tag, i, v) for i, v in enumerate(row))}</tr>" for tag, row in lines)
    return f'<div class="wide {kind}"><table>{body}</table></div>\n'


def _splits(splits: Sequence[SplitStats]) -> str:
    """A column a dataset, so that two or three of them fit on a phone."""
    head = ("", "read", "kept", "dropped", "distinct inputs", "distinct outputs", "mean length", "longest")
    rows: list[Sequence[Any]] = [head]
    for s in splits:
        longest = f"{s.longest[0][1]:,} {s.unit}" if s.longest else ""
        dropped = sum(s.dropped.values())
        mean = f"{s.mean_length:,}"
        rows.append((s.name, s.read, s.rows, dropped, s.distinct_inputs, s.distinct_outputs, mean, longest))
    return f'{_table(list(zip(*rows, strict=True)), right=len(splits))}<p class="dim">{_READ}</p>'


def _finding(finding: Finding) -> str:
    shown = "".join(f"<li>{escape(e)}</li>" for e in finding.examples)
    where = f"<code>{escape(finding.where)}</code> " if finding.where else ""
    return (
        f'<div class="finding {finding.severity}"><b>{finding.severity}</b> {where}{finding.count:,} × '
        f"{escape(finding.message)}<ul>{shown}</ul></div>\n"
    )


def _lengths(split: SplitStats, cutoff: int | None) -> str:
    """The histogram of lengths as SVG, with the cutoff as a line where it lies within or near."""
    bars = split.histogram
    if not bars:
        return ""
    width, height, top = 640, 140, 26
    low, high = bars[0][0], bars[-1][1]
    drawn = cutoff if cutoff is not None and split.unit == "tokens" and low <= cutoff else None
    far = drawn is not None and drawn > 2 * high  # far away, it would press the bars together
    if drawn is not None and not far:
        high = max(high, drawn)
    most = max(n for _, _, n in bars)
    scale = width / max(1, high - low)
    parts = []
    for start, stop, n in bars:
        x, w, h = (start - low) * scale, max(1.0, (stop - start) * scale - 1), n / most * height
        label = f"{start:,} to {stop - 1:,} {split.unit}: {n:,} rows"
        parts.append(f'<rect x="{x:.1f}" y="{top + height - h:.1f}" width="{w:.1f}" height="{h:.1f}">'
                     f"<title>{label}</title></rect>")  # fmt: skip
    if drawn is not None and not far:
        x = (drawn - low) * scale
        anchor = "end" if x > width / 2 else "start"
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 2}" y2="{top + height}"/>'
                     f'<text x="{x:.1f}" y="19" text-anchor="{anchor}">cutoff {drawn:,}</text>')  # fmt: skip
    y = top + height + 21
    parts.append(f'<text x="0" y="{y}">{low:,}</text>')
    parts.append(f'<text x="{width}" y="{y}" text-anchor="end">{high:,} {split.unit}</text>')
    note = f'<p class="dim">The cutoff, {cutoff:,}, lies far to the right.</p>' if far else ""
    return (
        f'<h2>Lengths of {escape(split.name)}</h2><svg role="img" aria-label="lengths" '
        f'viewBox="0 0 {width} {top + height + 28}">{"".join(parts)}</svg>{note}\n'
    )


def _attributes(split: SplitStats) -> str:
    if not split.attributes:
        return ""
    rows: list[Sequence[Any]] = [(path, sum(v.values()), len(v), values(v)) for path, v in split.attributes.items()]
    rows.insert(0, ("attribute", "count", "distinct", "most frequent values"))
    table = _table(rows, right=2, kind="attributes")
    return f'<h2>Outputs of {escape(split.name)}</h2><p class="dim">{_COUNT}</p>{table}'


def values(counts: Mapping[str, int], shown: int = 6) -> str:
    """The most frequent values with their counts, in one line."""
    parts = [f"{(v or '(none)')[:40]} {n:,}" for v, n in list(counts.items())[:shown]]
    return " · ".join(parts) + (" …" if len(counts) > shown else "")
