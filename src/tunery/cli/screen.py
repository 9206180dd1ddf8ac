"""What a person sees: events of the verbs as calm lines, tables and one progress bar at a time."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tunery.data import CheckResult, SplitStats

METRICS = {
    "exact_match": "exact match",
    "canonical_match": "canonical",
    "slot_f1": "slot F1",
    "parse_rate": "parse rate",
}
_HELD_OUT = METRICS | {"rewards/accuracies": "in the right order", "reward": "reward"}
_BARS = "▁▂▃▄▅▆▇█"


def terminal() -> TextIO:
    """The real stdout, kept apart from descriptor 1, which vendors' output may be sent away from."""
    with suppress(OSError, ValueError):
        return os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace", buffering=1)
    return sys.stdout


class Screen:
    """Renders events. With `as_json`, prints nothing but `result` and `fail`, as one JSON object."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.out = terminal()
        self.console = Console(file=self.out, highlight=False, soft_wrap=False)
        self.errors = Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._losses: list[float] = []
        self._quarter = 0  # of the training, told so far
        self._told = 0  # tenths of a batch
        self._quickstart = False
        self._began = time.monotonic()

    # --- plain output ---

    def say(self, text: str = "", style: str | None = None) -> None:
        """One line, markup honoured."""
        if not self.as_json:
            self.console.print(text, style=style)

    def result(self, value: Any) -> None:
        """The machine's answer, with --json only."""
        if self.as_json:
            self.out.write(json.dumps(value, default=str, ensure_ascii=False) + "\n")

    def fail(self, error: Mapping[str, Any]) -> None:
        """An error: on stderr for people, as the result for machines."""
        self.stop()
        if self.as_json:
            self.result({"error": error})
            return
        where = f"{error['where']}: " if error.get("where") else ""
        self.errors.print(Text.assemble(("error: ", "bold red"), where, str(error["message"])))
        if error.get("hint"):
            self.errors.print(Text.assemble(("hint:  ", "bold"), str(error["hint"])))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[str] = ()) -> None:
        """A plain table; columns named in `right` are right-aligned."""
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for name in columns:
            table.add_column(name, justify="right" if name in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(escape(str(cell)) for cell in row))
        self.say_table(table)

    def say_table(self, table: Table) -> None:
        """Print a rich table, not in JSON mode."""
        if not self.as_json:
            self.console.print(table)

    # --- progress ---

    def stop(self) -> None:
        """End the progress bar, if there is one; what it showed disappears."""
        if self._progress:
            self._progress.stop()
            self._progress = None
            self._task = None

    def _bar(self, text: str, done: float | None = None, total: float | None = None) -> None:
        if self.as_json or not self.console.is_terminal:
            return
        if self._progress is None:
            self._progress = Progress(
                SpinnerColumn(), TextColumn("{task.description}"), BarColumn(12), TimeElapsedColumn(),
                console=self.console, transient=True,
            )  # fmt: skip
            self._progress.start()
            self._task = self._progress.add_task(text, total=total)
        assert self._task is not None
        self._progress.update(self._task, description=escape(text.strip()), completed=done, total=total)

    # --- events ---

    def __call__(self, event: Mapping[str, Any]) -> None:
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler:
            handler(event)

    def _on_stage(self, event: Mapping[str, Any]) -> None:
        self._bar(event["text"])

    def _on_note(self, event: Mapping[str, Any]) -> None:
        self.say(f"[yellow]note:[/] {escape(event['text'])}")

    def _on_dashboard(self, event: Mapping[str, Any]) -> None:
        self.say(f"{self._indent}[dim]Ray's dashboard: {event['url']}[/]")

    def _on_run(self, event: Mapping[str, Any]) -> None:
        if not self._quickstart:
            self.say(f"[dim]run {event['id']}[/]")

    def _on_plan(self, event: Mapping[str, Any]) -> None:
        self.stop()
        shared = event["shared_prefix_tokens"]
        saved = f", {shared} of them shared and computed once" if shared > 15 else ""
        self.say(
            f"{self._indent}{event['train_rows']:,} rows of {event['tokens_per_row']:.0f} tokens{saved}\n"
            f"{self._indent}LoRA on {escape(str(event['base']))}, "
            f"{event['steps']:,} steps of {event['batch_rows']} rows"
        )
        for note in event["notes"]:
            self._on_note({"text": note})
        self._losses = []
        self._quarter = 0

    def _on_train(self, event: Mapping[str, Any]) -> None:
        if "parity" in event:
            self._parity(event["parity"])
        if "note" in event:
            self._on_note({"text": event["note"]})
        if "eval_loss" in event:
            self._held_out(event)
        if "loss" not in event:
            return
        self._losses.append(event["loss"])
        left = time.strftime("%M:%S", time.gmtime(event["remaining_time"]))
        text = (
            f"{self._indent}loss {event['loss']:.4f}  lr {event['lr']:.1e}  "
            f"{event['samples_per_second']:.1f} rows/s  left {left}"
        )
        self._bar(text, event["current_steps"], event["total_steps"])
        quarter = event["current_steps"] * 4 // event["total_steps"]
        if not self.console.is_terminal and quarter > self._quarter:
            self._quarter = quarter
            self.say(f"{self._indent}step {event['current_steps']}/{event['total_steps']}  {text.strip()}")

    def _held_out(self, event: Mapping[str, Any]) -> None:
        """One line an evaluation."""
        scores = [f", {title} {event[f'eval_{k}']:.3f}" for k, title in _HELD_OUT.items() if f"eval_{k}" in event]
        best = "  [green]best so far[/]" if event.get("best_global_step") == event["current_steps"] else ""
        self.say(
            f"{self._indent}step {event['current_steps']}/{event['total_steps']}  "
            f"held-out rows: loss {event['eval_loss']:.4f}{''.join(scores)}{best}"
        )

    def _parity(self, parity: Mapping[str, Any]) -> None:
        """One line when packing is exact, a loud one when it is not used."""
        errors = f"loss {parity['loss_error']:.0e}, gradients {parity['gradient_error']:.0e}"
        if parity["holds"]:
            self.say(f"{self._indent}[dim]packed rows equal unpacked ones: {errors} apart[/]")
        else:
            self.say(
                f"{self._indent}[bold yellow]packing changes this model's results ({errors} apart): "
                "rows are trained on one by one, slower and exact[/]"
            )

    def _on_progress(self, event: Mapping[str, Any]) -> None:
        self._bar(
            f"{self._indent}{event['done']:,} of {event['total']:,} {event.get('what', 'answers')}",
            event["done"],
            event["total"],
        )

    def _on_resumed(self, event: Mapping[str, Any]) -> None:
        if event["done"]:
            self.say(f"[dim]going on: {event['done']:,} of {event['rows']:,} rows are done[/]")

    def _on_batch(self, event: Mapping[str, Any]) -> None:
        """One line; where there is no terminal, one every tenth."""
        hits = f", {event['cache_hits']:.0%} from the cache" if event["cache_hits"] else ""
        eta = event["eta_seconds"] or 0
        text = (
            f"{event['done']:,} done, {event['failed']:,} failed, {event['left']:,} left  "
            f"{event['rows_per_second']:.1f} rows/s, tokens/s {event['prompt_tokens_per_second']:,.0f} in{hits}, "
            f"{event['completion_tokens_per_second']:,.0f} out  {eta // 60}:{eta % 60:02} to go"
        )
        self._bar(text, event["done"], event["rows"])
        tenth = event["done"] * 10 // event["rows"]
        if not self.console.is_terminal and tenth > self._told:
            self._told = tenth
            self.say(text)

    @property
    def _indent(self) -> str:
        return "    " if self._quickstart else ""

    # --- quickstart ---

    def _on_step(self, event: Mapping[str, Any]) -> None:
        self.stop()
        self._quickstart = True
        self.say(f"[bold]{event['number']}/{event['of']} {event['title']}[/] [dim]{self.elapsed}[/]")
        if event["number"] in (3, 4):
            self._bar("    starting the engine")

    @property
    def elapsed(self) -> str:
        """Time since the command began, as m:ss."""
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        return f"{minutes}:{seconds:02}"

    def _on_data(self, event: Mapping[str, Any]) -> None:
        self.say("    " + ", ".join(f"{name} {n:,} rows" for name, n in event["rows"].items()))
        for text in event["warnings"][:3]:
            self.say(f"    [yellow]note:[/] {escape(text)}")
        self.say(f"    [dim]{escape(_short(event['example']['input'], 200))}[/]")
        self.say(f"    [dim]→ {escape(_short(event['example']['output'], 200))}[/]")

    def _on_kept(self, event: Mapping[str, Any]) -> None:
        self.stop()
        self.say(f"    {escape(event['text'])} [dim](--restart begins anew)[/]")

    def _on_trained(self, event: Mapping[str, Any]) -> None:
        self.stop()
        curve = sparkline(self._losses)
        seconds = event["train_runtime"]
        self.say(
            f"    loss [bold]{curve}[/] {self._losses[0]:.2f} → {self._losses[-1]:.3f}"
            if self._losses
            else "    trained"
        )
        held_out = f", loss on held-out rows {event['eval_loss']:.3f}" if "eval_loss" in event else ""
        if event.get("best_global_step") is not None:
            held_out += f", best at step {event['best_global_step']}"
        self.say(f"    {seconds:.0f} s at {event['train_samples_per_second']:.0f} rows/s{held_out}; registered as "
                 f"[bold]{event['version']}[/]")  # fmt: skip

    def _on_report(self, event: Mapping[str, Any]) -> None:
        self.stop()
        self.report(event["report"], event["label"], worst=1, instruction=event["instruction"])

    def _on_serving(self, event: Mapping[str, Any]) -> None:
        self.stop()
        self.say(f"    {event['url']}  ready in {event['seconds']:.0f} s; models: {', '.join(event['models'])}")

    def _on_question(self, event: Mapping[str, Any]) -> None:
        self.say(f"    [dim]{escape(event['input'])}[/]")
        if not self.as_json:
            self.console.print("    → ", end="")

    def _on_token(self, event: Mapping[str, Any]) -> None:
        if not self.as_json:
            self.console.print(event["text"], end="", markup=False, style="bold green")

    def _on_answer(self, event: Mapping[str, Any]) -> None:
        verdict = "equal to the label" if event["text"].strip() == event["gold"] else f"the label is {event['gold']}"
        self.say("")
        self.say(
            f"    [dim]first token after {event['first_token'] * 1000:.0f} ms, "
            f"all after {event['seconds'] * 1000:.0f} ms; {escape(verdict)}[/]"
        )

    def _on_done(self, event: Mapping[str, Any]) -> None:
        folder = event["folder"]
        self.say(f"[bold]Done[/] [dim]{self.elapsed}[/]. Everything is in {folder}/:")
        rows = [
            ("tunery.yaml", "the settings", f"tunery init {folder}"),
            ("data/", "labelled rows", "tunery data check"),
            ("runs/train-...", "adapter, loss curve, logs", "tunery train"),
            ("runs/eval-...", "scores and answers", "tunery eval"),
            (f"models/{event['version'].replace('@', '/')}/", "the version", "tunery models list"),
            ("", "answers for a file", "tunery batch rows.csv answers.jsonl"),
            ("", "the service", "tunery serve"),
        ]
        self.table(("  where", "what", f"alone, in {folder}/"), [("  " + a, b, c) for a, b, c in rows])

    # --- data ---

    def check(self, result: CheckResult) -> None:
        """A data check: numbers and lengths of every split, then the findings, worst first."""
        rows = [
            (
                s.name, f"{s.read:,}", f"{s.rows:,}", f"{sum(s.dropped.values()):,}", f"{s.distinct_inputs:,}",
                f"{s.distinct_outputs:,}", f"{s.mean_length:,.0f}",
                f"{s.longest[0][1]:,} {s.unit}" if s.longest else "",
            )
            for s in result.splits
        ]  # fmt: skip
        head = ("split", "read", "kept", "dropped", "distinct inputs", "distinct outputs", "mean", "longest")
        self.table(head, rows, right=head[1:])
        if result.splits:
            self.lengths(result.splits[0], result.cutoff_len)
            self._attributes(result.splits[0])
        for finding in result.findings:
            colour = {"error": "red", "warning": "yellow", "note": "dim"}[finding.severity]
            where = f"{finding.where}: " if finding.where else ""
            self.say(f"[{colour}]{finding.severity}:[/] {finding.count:,} × {escape(where + finding.message)}")
            for example in finding.examples:
                self.say(f"  [dim]{escape(_short(example, 200))}[/]")
        if not result.findings:
            self.say("no faults found")

    def split_stats(self, stats: SplitStats, cutoff: int | None) -> None:
        """Numbers of one dataset."""
        self.say(f"[bold]{escape(stats.name)}[/]  read {stats.read:,} = {stats.rows:,} kept + "
                 f"{sum(stats.dropped.values()):,} dropped; {stats.distinct_inputs:,} distinct inputs, "
                 f"{stats.distinct_outputs:,} distinct outputs")  # fmt: skip
        self.lengths(stats, cutoff)
        self._attributes(stats)
        self.say()

    def lengths(self, stats: SplitStats, cutoff: int | None) -> None:
        """A histogram of lengths, a line a bar, with the cutoff drawn where it lies."""
        most = max((n for _, _, n in stats.histogram), default=0)
        limit = cutoff if stats.unit == "tokens" else None
        for low, high, n in stats.histogram:
            if limit is not None and limit < low:
                self.say(f"[red]{limit:>9,} ───── cutoff[/]")
                limit = None
            self.say(f"{low:>9,} [blue]{'█' * round(n / most * 40) or '▏' * bool(n)}[/] {n:,}")
            if limit is not None and limit < high:
                self.say(f"[red]{limit:>9,} ───── cutoff[/]")
                limit = None
        if limit is not None and stats.histogram:
            self.say(f"[dim]{limit:>9,} ───── cutoff[/]")
        if stats.histogram:
            self.say(f"[dim]rows by {stats.unit}[/]")

    def _attributes(self, stats: SplitStats) -> None:
        from tunery.cli.page import values

        rows = [
            (path, f"{sum(v.values()):,}", f"{len(v):,}", values(v, 4))
            for path, v in list(stats.attributes.items())[:20]
        ]
        if rows:
            self.table(("attribute", "count", "distinct", "most frequent values"), rows, right=("count", "distinct"))
        if len(stats.attributes) > 20:
            self.say(f"[dim]and {len(stats.attributes) - 20:,} more: --json has all[/]")

    # --- reports ---

    def report(self, report: Mapping[str, Any], label: str, worst: int, instruction: str | None = None) -> None:
        """Scores of every model beside each other, then the rows that `label` got most wrong."""
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
        table.add_column(f"{self._indent}{report['n']} rows")
        for title in METRICS.values():
            table.add_column(title, justify="right", no_wrap=True)
        for model, found in report["metrics"].items():
            cells = [_interval(found[name]) for name in METRICS]
            table.add_row(self._indent + model, *cells, style="bold" if model == label else None)
        self.say_table(table)
        self.worst(report, label, worst, instruction)

    def worst(self, report: Mapping[str, Any], label: str, worst: int, instruction: str | None = None) -> None:
        """The rows that `label` got most wrong."""
        wrong = [s for s in report["samples"] if not s["answers"][label]["canonical"]]
        wrong.sort(key=lambda s: -s["answers"][label]["slot_errors"])
        if wrong and worst:
            self.say(f"{self._indent}[dim]of {len(wrong)} wrong, the worst:[/]")
        for sample in wrong[:worst]:
            text = sample["input"].removeprefix(f"{instruction}\n") if instruction else sample["input"]
            self.say(f"{self._indent}[dim]text[/]   {escape(_short(text, 300))}")
            self.say(f"{self._indent}[dim]label[/]  {escape(sample['gold'])}")
            answer = sample["answers"][label]
            self.say(f"{self._indent}[dim]answer[/] {escape(answer['error'] or answer['text'])}")
            if not self._quickstart:
                self.say("")


def sparkline(values: Sequence[float], width: int = 32, *, log: bool = True) -> str:
    """A curve in one line; on a log scale as losses are read, or not."""
    if not values:
        return ""
    step = max(1, len(values) // width)
    means = [sum(values[i : i + step]) / len(values[i : i + step]) for i in range(0, len(values), step)]
    if log:
        means = [math.log(max(1e-9, mean)) for mean in means]
    low, high = min(means), max(means)
    return "".join(_BARS[int((v - low) / max(1e-9, high - low) * 7)] for v in means)


def _interval(metric: Mapping[str, Any]) -> str:
    """The score and half the width of its 95 % interval."""
    if metric["value"] is None:
        return "unscored"
    return f"{metric['value']:.3f} [dim]±{(metric['high'] - metric['low']) / 2:.3f}[/]"


def _short(text: str, limit: int) -> str:
    line = " ".join((text or "").split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
