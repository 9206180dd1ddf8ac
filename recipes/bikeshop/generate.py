"""Write Tunery's embedded dataset: messages of a bicycle shop and the calls they stand for.

python recipes/bikeshop/generate.py           # write src/tunery/data/bikeshop/*.jsonl
python recipes/bikeshop/generate.py --check   # fail if the files there differ
python recipes/bikeshop/generate.py --stats   # also print counts
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import grammar
from cores import CORES
from extras import CLOSERS, EXTRAS, INTROS, OPENERS, TAILS
from grammar import ATTRIBUTES, Conflict, Draft, Segment

OUTPUT = Path(__file__).resolve().parents[2] / "src" / "tunery" / "data" / "bikeshop"
SEED = 7
SPLITS = {"test": 250, "val": 250, "train": 1500}
SHARES = {
    "order": 14, "ask_price": 11, "request_info": 12, "report_fault": 13, "book_service": 14, "cancel": 8,
    "recommend": 9, "ask_advice": 10, "give_opinion": 9,
}  # fmt: skip
SKELETON_LIMIT = 20
OUTPUT_LIMIT = 2
COPIED = ("model", "brand", "part", "customer", "order_no", "date", "price")
INSTRUCTION = (
    "Turn the bicycle shop message into one function call: the function, then in round brackets its "
    "attributes, each followed by its values in square brackets. Functions: order, ask_price, "
    "request_info, report_fault, book_service, cancel, recommend, ask_advice, give_opinion. Attributes, "
    "in this order: model, brand, bike_type, electric, frame_size, level, part, customer, order_no, "
    "date, price, under_warranty, pickup, urgency, opinion. Separate several values with commas, leave "
    "brackets empty for what is asked, and omit what is not mentioned."
)
SINGLE = re.compile(r"\b(it|it's|its|one|mine|bike|version)\b")
BIKE_SLOT = re.compile(r"\{(\w+_(named|kind|bike)|model)\}")


@dataclass
class Row:
    text: str
    output: str
    skeleton: str
    patterns: tuple[str, ...]


def lines(block: str) -> list[str]:
    return [line for line in block.split("\n") if line.strip()]


class Writer:
    """Draws rows for one split, preferring the patterns used least so far."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.uses: collections.Counter[str] = collections.Counter()

    def pick(self, pool: list[str]) -> str:
        if not pool:
            raise Conflict("nothing fits")
        return self.rng.choices(pool, [1 / (1 + self.uses[line]) ** 2 for line in pool])[0]

    def draw(self, function: str) -> Row:
        rng = self.rng
        draft = Draft(rng, function, us=rng.random() < 0.35)
        core = self.pick(lines(CORES[function]))
        patterns = [core, *self.tails(function, core)]
        body = add_tails(core, sorted(patterns[1:], key=lambda tail: (tail.startswith(","), "=>" in tail)))
        before: list[list[Segment]] = []
        if core.startswith("@"):
            blocks = [block for names, block in INTROS.items() if function in names.split()]
            intro = self.pick([line for block in blocks for line in lines(block)])
            patterns.append(intro)
            before.append(grammar.render(intro, draft))
        main = grammar.render(body.removeprefix("@ "), draft)
        after: list[list[Segment]] = []
        for _ in range(rng.choices((0, 1, 2, 3), (40, 45, 13, 2))[0]):
            extras = self.extras(function, core, set(patterns))
            if any(is_filler(line) for line in patterns[1:]):
                extras = [line for line in extras if not is_filler(line)]
            extra = self.pick(extras)
            patterns.append(extra)
            early = extra.startswith("^") and not before and rng.random() < 0.6
            (before if early else after).append(grammar.render(extra.removeprefix("^"), draft))
        if not grammar.is_consistent(draft) or len(draft.labels) > 7:
            raise Conflict("does not hold together")
        units = [*before, main, *after]
        skeleton = " ".join(sorted(masked(unit) for unit in units[:-1])) + " " + masked(units[-1])
        text = self.join(units, draft)
        check(text, draft)
        return Row(text, grammar.call(draft), re.sub(r"[^\w<>' ]", "", skeleton).lower(), tuple(patterns))

    def tails(self, function: str, core: str) -> list[str]:
        """Up to two tails: no two that follow a comma, no two without a label."""
        found: list[str] = []
        pool = [line for line in lines(TAILS[function]) if suits(function, core, line)]
        if not is_singular(function, core):
            pool = [line for line in pool if not SINGLE.search(line)]
        for _ in range(core.count("{t}") and self.rng.choices((0, 1, 2), (46, 46, 8))[0]):
            tail = self.pick(pool)
            found.append(tail)
            pool = [line for line in pool if line != tail]
            if tail.startswith(","):
                pool = [line for line in pool if not line.startswith(",")]
            if is_filler(tail):
                pool = [line for line in pool if not is_filler(line)]
        return found

    def extras(self, function: str, core: str, used: set[str]) -> list[str]:
        singular = is_singular(function, core)
        bike = bool(BIKE_SLOT.search(core)) or core.startswith("@") or function in ("report_fault", "book_service")
        found = [line for names, block in EXTRAS if function in names.split() for line in lines(block)]
        about_bike = re.compile(r"electric|frame_size|\{size|\{brand|\{a_type|version|\bone\b")
        return [
            line
            for line in found
            if line not in used
            and suits(function, core, line)
            and (singular or not SINGLE.search(line))
            and (bike or not about_bike.search(line) or (function == "ask_advice" and not SINGLE.search(line)))
        ]

    def join(self, units: list[list[Segment]], draft: Draft) -> str:
        rng = self.rng
        opener = rng.choice(OPENERS) if rng.random() < 0.22 else ""
        out = opener
        start = not opener.endswith(",")
        for i, unit in enumerate(units):
            text, lower = plain(unit), starts_with_copy(unit)
            ended = text[-1] in "?!"
            if i == 0:
                out += (" " if out else "") + (capital(text) if start else text)
                if start and lower and text[0].islower():
                    raise Conflict("a copied value would change its case")
            else:
                joint = "" if out[-1] in "?!" else rng.choices((".", " -", ";", ","), (66, 14, 8, 12))[0]
                if joint in ("", ".") and lower and text[0].islower():
                    raise Conflict("a copied value would change its case")
                out += joint + " " + (capital(text) if joint in ("", ".") else text)
            if i == len(units) - 1 and not ended:
                out += "" if rng.random() < 0.12 else "."
        if rng.random() < 0.08:
            out += (" " if out[-1] in ".?!" else ". ") + rng.choice(CLOSERS)
        if rng.random() < 0.02:
            out = misspell(out, units, rng)
        if rng.random() < 0.05 and out[0].isupper() and not units[0][0].mask and not out.startswith("I"):
            out = out[0].lower() + out[1:]
        return fix_articles(out)


def suits(function: str, core: str, line: str) -> bool:
    """Names and order numbers belong to questions about orders, warranties to bikes that are owned."""
    if function == "request_info" and re.search(r"\{customer|\{order_no", line):
        return bool(re.search(r"order|book|my_bike|delivery|news|expect", core))
    if function == "request_info" and re.search(r"page|find that", line):
        return not re.search(r"order|book|my_bike|delivery|news|expect", core)
    if function == "cancel" and re.search(r"placed|order_no|reserved|packed|warehouse", line):
        return not re.search(r"\{my_bike|on_date|\{date|slot|service", core)
    if function == "report_fault" and re.match(r" (ever )?since", line):
        return not re.search(r"snapped|failed|crack|bought|turned up|given up|broke|seized|got into", core)
    if function == "ask_price" and "under_warranty" in line:
        return "{my_bike}" in core
    return True


def is_filler(line: str) -> bool:
    """Whether a line says nothing that is labelled."""
    return "=>" not in line and not re.search(r"\{", line)


def is_singular(function: str, core: str) -> bool:
    """Whether "it" after this clause can only be one bike (or the job done on it)."""
    if "{models" in core or "{sizes}" in core or "{orders}" in core:
        return False
    if function in ("report_fault", "book_service", "ask_advice"):
        return True
    if re.search(r"\{(a_parts?|n_parts|part)\}", core):
        return False
    return bool(BIKE_SLOT.search(core)) or core.startswith("@") or (function == "cancel" and "{order_no}" in core)


def add_tails(core: str, tails: list[str]) -> str:
    text, labels = grammar.split_labels(core)
    inserted, pairs = "", [f"{name}={value}" for name, value in labels.items()]
    for tail in tails:
        addition, more = grammar.split_labels(tail)
        inserted += " " + addition.strip() if not tail.startswith(",") else addition
        pairs += [f"{name}={value}" for name, value in more.items()]
    if len({pair.partition("=")[0] for pair in pairs}) != len(pairs):
        raise Conflict("two labels for one attribute")
    return text.replace("{t}", inserted) + " => " + "; ".join(pairs)


def plain(unit: list[Segment]) -> str:
    text = "".join(segment.text for segment in unit).strip()
    text = re.sub(r",\s*,", ",", text)
    text = re.sub(r",(\s*[?!.;:])", r"\1", text)
    return text.rstrip(",").replace("  ", " ")


def masked(unit: list[Segment]) -> str:
    return "".join(f"<{segment.mask}>" if segment.mask else segment.text for segment in unit).strip()


def starts_with_copy(unit: list[Segment]) -> bool:
    return unit[0].mask in COPIED


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def fix_articles(text: str) -> str:
    vowel = r"(?=(?:[aei]|o(?!nce|ne)|u(?!ni|se)|A|E(?!u)|I|O|U|XL|XS|MTB|M\b|L\b|S\b|11-|8|18\b))"
    return re.sub(rf"\b([Aa]) {vowel}", lambda match: match[1] + "n ", text)


def misspell(text: str, units: list[list[Segment]], rng: random.Random) -> str:
    """One slip of the fingers, in a word that is no part of a value."""
    free = " ".join(segment.text for unit in units for segment in unit if not segment.mask)
    words = [word for word in set(re.findall(r"\b[a-z]{5,}\b", free)) if len(re.findall(rf"\b{word}\b", text)) == 1]
    if not words:
        return text
    word = rng.choice(sorted(words))
    at = rng.randrange(1, len(word) - 2)
    head, tail = word[:at], word[at + 1 :]
    slip = rng.choice((head + tail[0] + word[at] + tail[1:], head + tail, head + word[at] * 2 + tail))
    return re.sub(rf"\b{word}\b", slip, text)


def check(text: str, draft: Draft) -> None:
    for attribute in COPIED:
        for value in draft.labels.get(attribute, []):
            if value not in text:
                raise Conflict(f"{value!r} is not in the text")


def build() -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    texts: set[str] = set()
    owner: dict[str, str] = {}
    outputs: collections.Counter[str] = collections.Counter()
    skeletons: collections.Counter[str] = collections.Counter()
    for number, (split, size) in enumerate(SPLITS.items()):
        rng = random.Random(SEED * 100 + number)
        writer = Writer(rng)
        plan = [name for name, share in SHARES.items() for _ in range(round(size * share / 100))]
        plan = (plan + list(SHARES))[:size]
        rng.shuffle(plan)
        rows[split] = []
        for function in plan:
            while True:
                try:
                    row = writer.draw(function)
                except Conflict:
                    continue
                taken = owner.get(row.output, split) != split or row.text.lower() in texts
                full = skeletons[row.skeleton] >= SKELETON_LIMIT or outputs[row.output] >= OUTPUT_LIMIT
                if not taken and not full:
                    break
            texts.add(row.text.lower())
            owner[row.output] = split
            outputs[row.output] += 1
            skeletons[row.skeleton] += 1
            writer.uses.update(row.patterns)
            rows[split].append(row)
    return rows


def files(rows: dict[str, list[Row]]) -> dict[str, str]:
    out: dict[str, str] = {}
    for split in ("train", "val", "test"):
        records = ({"instruction": INSTRUCTION, "input": row.text, "output": row.output} for row in rows[split])
        out[f"{split}.jsonl"] = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    registry = {
        f"bikeshop-{split}": {"file_name": f"{split}.jsonl", "formatting": "alpaca", "columns": columns}
        for split in ("train", "val", "test")
    }
    out["dataset_info.json"] = json.dumps(registry, indent=2) + "\n"
    skeletons = len({row.skeleton for split in rows.values() for row in split})
    card = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    out["README.md"] = card.replace("@instruction@", INSTRUCTION).replace("@skeletons@", f"{skeletons:,}")
    return out


def print_stats(rows: dict[str, list[Row]]) -> None:
    every = [row for split in rows.values() for row in split]
    skeletons = collections.Counter(row.skeleton for row in every)
    print({split: len(found) for split, found in rows.items()})
    print("functions", collections.Counter(row.output.partition("(")[0] for row in every).most_common())
    for attribute in ATTRIBUTES:
        found = [match for row in every if (match := re.search(rf"[(, ]{attribute}\[(.*?)\]", row.output))]
        empty, several = sum(not match[1] for match in found), sum("," in match[1] for match in found)
        values = collections.Counter(match[1] for match in found if "," not in match[1]).most_common(8)
        shown = values if attribute not in COPIED else ""
        print(f"{attribute:15} {len(found):5}  asked {empty:4}  several {several:4}  {shown}")
    print(f"skeletons {len(skeletons)}, most frequent {max(skeletons.values())} times")
    print(f"patterns {len({pattern for row in every for pattern in row.patterns})}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    parser.add_argument("--stats", action="store_true", help="print counts")
    options = parser.parse_args()
    rows = build()
    if options.stats:
        print_stats(rows)
    made = files(rows)
    if options.check:
        wrong = [
            name
            for name, text in made.items()
            if not (OUTPUT / name).is_file() or (OUTPUT / name).read_text(encoding="utf-8") != text
        ]
        print(f"differs: {', '.join(wrong)}" if wrong else "up to date", file=sys.stderr)
        return int(bool(wrong))
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name, text in made.items():
        (OUTPUT / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
