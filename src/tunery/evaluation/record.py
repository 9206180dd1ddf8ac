"""What an evaluation leaves behind: report.json with everything, report.md to read, report.html to look into."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from tunery.storage import write_atomic
from tunery.types import Report

_PAGE_ROWS = 5000  # of the page; the wrong ones first, so that a phone can open it


def write_report(report: Report, folder: Path) -> dict[str, Path]:
    """Write the three files into `folder` and return their paths by suffix ("json", "md", "html")."""
    values = report.to_dict()
    paths = {kind: folder / f"report.{kind}" for kind in ("json", "md", "html")}
    # In ASCII, since a JSON answer may hold half a surrogate pair, which UTF-8 cannot.
    write_atomic(paths["json"], json.dumps(values, indent=1, default=str, allow_nan=False) + "\n")
    write_atomic(paths["md"], markdown(values).encode("utf-8", "replace"))
    write_atomic(paths["html"], page(values).encode("utf-8", "replace"))
    return paths


def page(report: Mapping[str, Any]) -> str:
    """The self-contained page: no file and no address beside it is needed."""
    samples = [s | {"index": i} for i, s in enumerate(report["samples"])]
    if len(samples) > _PAGE_ROWS:
        samples.sort(key=lambda s: all(a["canonical"] for a in s["answers"].values()))
        samples = sorted(samples[:_PAGE_ROWS], key=lambda s: s["index"])
    slim = [{k: v for k, v in s.items() if k != "input"} for s in samples]
    data = json.dumps({**report, "samples": slim}, ensure_ascii=False, allow_nan=False, default=str)
    # The only two sequences that could end or confuse a script element (HTML standard, 4.12.1.3).
    data = data.replace("</", "<\\/").replace("<!--", "<\\u0021--")
    template = resources.files("tunery.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    head, tail = template.split(">DATA<")
    return f"{head}>{data}<{tail}"


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown: metrics beside each other with intervals, attributes, slices, the worst confusions."""
    labels = list(report["metrics"])
    record = report.get("record") or {}
    last = labels[-1]
    lines = [
        f"# {last} on {(record.get('dataset') or {}).get('name', 'rows')}",
        "",
        f"{report['n']:,} rows, task {report['task']}. Brackets hold 95 % bootstrap intervals.",
        "",
        _line("metric", *labels, "n", "what it is"),
        _line(*["---"] * (len(labels) + 3)),
    ]
    for name, meaning in report["definitions"].items():
        found = [report["metrics"][label].get(name) for label in labels]
        if any(m and m["value"] is not None for m in found):
            lines.append(_line(name, *map(_cell, found), found[-1]["n"] if found[-1] else "", meaning))
    details = report["details"].get(last, {})
    if details.get("attributes"):
        lines += ["", f"## Attributes ({last})", ""]
        lines += [_line("attribute", "F1", "precision", "recall", "gold", "predicted"), _line(*["---"] * 6)]
        for name, m in sorted(details["attributes"].items(), key=lambda item: -item[1]["gold"]):
            scores = (_cell(m["f1"]), _cell(m["precision"], False), _cell(m["recall"], False))
            lines.append(_line(name, *scores, m["gold"], m["predicted"]))
    if details.get("slices"):
        lines += ["", f"## Slices ({last})", "", _line("slice", "value", "n", "exact match", "canonical", "slot F1")]
        lines.append(_line(*["---"] * 6))
        for dimension, values in details["slices"].items():
            for value, m in values.items():
                scores = [_cell(m[k]) for k in ("exact_match", "canonical_match", "slot_f1")]
                lines.append(_line(dimension, value, m["n"], *scores))
    if details.get("confusions"):
        lines += [
            "",
            f"## Confusions ({last})",
            "",
            _line("attribute", "gold", "predicted", "times"),
            _line(*["---"] * 4),
        ]
        for c in details["confusions"][:20]:
            lines.append(_line(c["attribute"], _said(c["gold"]), _said(c["predicted"]), c["n"]))
    swapped = {label: d["swapped"] for label, d in report["details"].items() if d.get("swapped")}
    if swapped:
        lines += ["", "## Names nobody has seen", "", "The same rows before and after their copied names were swapped."]
        lines += ["", _line("metric", *(f"{label} {when}" for label in swapped for when in ("before", "after")))]
        lines.append(_line(*["---"] * (1 + 2 * len(swapped))))
        for name in swapped[last]["before"]:
            lines.append(_line(name, *(_cell(s[when][name]) for s in swapped.values() for when in ("before", "after"))))
        lines += ["", f"n = {swapped[last]['n']:,} rows"]
    trust = details.get("confidence") or {}
    if trust:
        lines += ["", f"## Confidence ({last})", ""]
        lines += [f"- {_trust(kind, t)}" for kind, t in trust.items()]
    return "\n".join(lines) + "\n"


def _trust(kind: str, t: Mapping[str, Any]) -> str:
    if t["unknown"] == t["n"]:
        return f"{kind}s: unknown; the answers have no log-probabilities"
    raw = f"{kind}s: expected calibration error {t['ece_raw']:.3f} raw"
    if t["calibrator"]:
        return f"{raw}, {t['ece']:.3f} calibrated ({t['calibrator']['kind']}, on {t['calibrator']['n']:,} {kind}s)"
    return f"{raw}; not calibrated, so the confidence of a single {kind} is unknown"


def _said(value: str | None) -> str:
    return "(none)" if value is None else value or "(empty)"


def _cell(metric: Mapping[str, Any] | None, interval: bool = True) -> str:
    if metric is None or metric["value"] is None:
        return "unscored"
    return f"{metric['value']:.3f}" + (f" [{metric['low']:.3f}, {metric['high']:.3f}]" if interval else "")


def _line(*cells: Any) -> str:
    return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"
