"""Where a value stands in the text it was extracted from: word for word, rewritten by a known rule, or not at all."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from tunery.data.spans import inside_word

Kind = Literal["verbatim", "normalised", "inferred"]

_TOKEN = re.compile(r"[^\W_]+")
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ORDINALS = (
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth"
).split()
_SMALL = (
    {w: i for i, w in enumerate(_UNITS)}
    | {w: i for i, w in enumerate(_ORDINALS)}
    | {w: 20 + 10 * i for i, w in enumerate(_TENS)}
    | {w.removesuffix("y") + "ieth": 20 + 10 * i for i, w in enumerate(_TENS)}
)
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000, "hundredth": 100, "thousandth": 1000}
_MULTIPLES = {"once": 1, "twice": 2, "thrice": 3, "single": 1, "double": 2, "triple": 3, "dozen": 12}
_MONTHS = {
    name: i
    for i, full in enumerate(
        "january february march april may june july august september october november december".split(), 1
    )
    for name in (full, full[:3])
} | {"sept": 9}
_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_DATES = tuple(
    re.compile(p, re.IGNORECASE)
    for p in (
        r"(?<!\d)(?P<y>\d{4})[-/.](?P<m>\d{1,2})[-/.](?P<d>\d{1,2})(?!\d)",
        r"(?<!\d)(?P<d>\d{1,2})[-/.](?P<m>\d{1,2})[-/.](?P<y>\d{4})(?!\d)",
        rf"\b(?P<m>{_MONTH})\b\.?\s+(?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?:,?\s+(?:of\s+)?(?P<y>\d{{4}}))?(?!\d)",
        rf"(?<!\d)(?P<d>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?(?P<m>{_MONTH})\b\.?(?:,?\s+(?P<y>\d{{4}}))?(?!\d)",
        rf"\b(?P<m>{_MONTH})\b\.?,?\s+(?:of\s+)?(?P<y>\d{{4}})(?!\d)",
    )
)


@dataclass(frozen=True, slots=True)
class Grounding:
    """How one value stands in a text. `text[start:end]` is its span; an inferred value has none and no rule.

    `rule` of a normalised value: case, spacing, punctuation, accent, plural, number or date.
    """

    kind: Kind
    rule: str | None = None
    start: int | None = None
    end: int | None = None


INFERRED = Grounding("inferred")


def ground(value: str, text: str) -> Grounding:
    """Find `value` in `text`, by the least rewriting that finds it. An empty value is inferred.

    Spans are whole words: "art" does not stand in "party". In scripts without spaces words begin anywhere.
    """
    if not value.strip():
        return INFERRED
    at = _whole(text, value)
    if at >= 0:
        return Grounding("verbatim", None, at, at + len(value))
    source = _source(text)
    for rule in _RULES:
        if found := rule(value, source):
            return found
    return INFERRED


class _Source:
    """A text prepared once for all its values: its words, and its letters alone with their places."""

    __slots__ = ("letters", "places", "text", "words")

    def __init__(self, text: str) -> None:
        self.text = text
        self.words = [(m.start(), m.end(), _fold(m[0])) for m in _TOKEN.finditer(text)]
        letters: list[str] = []
        self.places: list[int] = []
        for start, end, word in self.words:
            if text.isascii():
                letters.append(word)
                self.places.extend(range(start, end))
                continue
            for at in range(start, end):
                folded = _fold(text[at])
                letters.append(folded)
                self.places.extend([at] * len(folded))
        self.letters = "".join(letters)


@lru_cache(maxsize=2048)
def _source(text: str) -> _Source:
    return _Source(text)


def _fold(text: str) -> str:
    """Case and accents off."""
    if text.isascii():
        return text.lower()  # the same, far faster
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))


def _whole(text: str, value: str, at: int = 0) -> int:
    """Where `value` stands in `text` as whole words, or -1."""
    while (at := text.find(value, at)) >= 0:
        if not inside_word(text, at) and not inside_word(text, at + len(value)):
            return at
        at += 1
    return -1


def _letters_match(value: str, source: _Source) -> Grounding | None:
    """The same letters and digits in the same order, whatever stands between them and however they are cased."""
    wanted = "".join(_fold(m[0]) for m in _TOKEN.finditer(value))
    if not wanted:
        return None
    at = -1
    while (at := source.letters.find(wanted, at + 1)) >= 0:
        start, end = source.places[at], source.places[at + len(wanted) - 1] + 1
        if not inside_word(source.text, start) and not inside_word(source.text, end):
            return Grounding("normalised", _difference(value, source.text[start:end]), start, end)
    return None


def _difference(value: str, found: str) -> str:
    if value.casefold() == found.casefold():
        return "case"
    if "".join(value.casefold().split()) == "".join(found.casefold().split()):
        return "spacing"
    if _fold(value) == _fold(found):
        return "accent"
    return "punctuation"


def _plural_match(value: str, source: _Source) -> Grounding | None:
    """Word by word the same but for an English plural ending."""
    wanted = [_singular(_fold(m[0])) for m in _TOKEN.finditer(value)]
    if not wanted or not any(w.isalpha() for w in wanted):
        return None
    for i in range(len(source.words) - len(wanted) + 1):
        if all(_singular(source.words[i + j][2]) == word for j, word in enumerate(wanted)):
            return Grounding("normalised", "plural", source.words[i][0], source.words[i + len(wanted) - 1][1])
    return None


@lru_cache(maxsize=1 << 14)
def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word


def _number_match(value: str, source: _Source) -> Grounding | None:
    """The same number in other signs: 12 and twelve, 1000 and 1,000, 2.50 and 2.5, 3 and third."""
    wanted = _as_number(value)
    if wanted is None:
        return None
    return next(
        (Grounding("normalised", "number", start, end) for start, end, n in _numbers(source) if n == wanted), None
    )


def _as_number(value: str) -> float | None:
    found = list(_numbers(_source(value)))
    if len(found) != 1:
        return None
    start, end, number = found[0]
    around = value[:start] + value[end:]
    return number if not any(c.isalnum() for c in around) else None


_DIGITS = re.compile(r"(?<![\w.])-?(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?:st|nd|rd|th)?(?![\w])")


def _numbers(source: _Source) -> Iterator[tuple[int, int, float]]:
    """Start, end and value of every number in digits or words."""
    for m in _DIGITS.finditer(source.text):
        sign = -1 if m[0].startswith("-") else 1
        yield m.start(), m.end(), sign * float(m[1].replace(",", "") + (m[2] or ""))
    i, words = 0, source.words
    while i < len(words):
        if words[i][2] in _MULTIPLES:
            yield words[i][0], words[i][1], _MULTIPLES[words[i][2]]
            i += 1
            continue
        j, total, group, last = i, 0, 0, None
        while j < len(words):
            word = words[j][2]
            if word in _SMALL and (last is None or last >= 100 or (last >= 20 and _SMALL[word] < 10)):
                group += _SMALL[word]
                last = _SMALL[word]
            elif word in _SCALES and last is not None:
                scale = _SCALES[word]
                if scale == 100:
                    group *= 100
                else:
                    total, group = total + group * scale, 0
                last = scale
            elif not (word == "and" and (last or 0) >= 100 and j + 1 < len(words) and words[j + 1][2] in _SMALL):
                break
            j += 1
        if last is None:
            i += 1
            continue
        yield words[i][0], words[j - 1][1], total + group
        i = j


def _date_match(value: str, source: _Source) -> Grounding | None:
    """The same day (or month of a year) in another notation. 03/04/2020 is taken as either day."""
    wanted = {d for _, _, days in _dates(value.strip(), whole=True) for d in days}
    if not wanted:
        return None
    return next(
        (Grounding("normalised", "date", start, end) for start, end, days in _dates(source.text) if wanted & days),
        None,
    )


Day = tuple[int | None, int, int | None]  # year, month, day


def _dates(text: str, *, whole: bool = False) -> Iterator[tuple[int, int, set[Day]]]:
    for form in _DATES:
        for m in [form.fullmatch(text)] if whole else form.finditer(text):
            if m is None:
                continue
            part = m.groupdict()
            year = int(part["y"]) if part.get("y") else None
            day = int(part["d"]) if part.get("d") else None
            named = part["m"].casefold()
            month = _MONTHS.get(named) or int(named)
            found: set[Day] = {(year, month, day)}
            if named.isdigit() and form is _DATES[1] and day is not None:
                found.add((year, day, month))
            good = {d for d in found if 1 <= d[1] <= 12 and (d[2] is None or 1 <= d[2] <= 31)}
            if good:
                yield m.start(), m.end(), good


_RULES: tuple[Callable[[str, _Source], Grounding | None], ...] = (
    _letters_match,
    _date_match,
    _number_match,
    _plural_match,
)
