"""Samplers of open-class values: names, titles, codes, dates, amounts. Each takes a random source, gives a string."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import words as w

T = TypeVar("T")
Sampler = Callable[[random.Random], str]
ACCENTS = str.maketrans({"a": "á", "e": "é", "o": "ö", "u": "ü", "i": "í", "n": "ñ", "c": "ç", "s": "š"})
SMALL = [
    "of",
    "of the",
    "and",
    "and the",
    "in",
    "in the",
    "for",
    "to",
    "on the",
    "with",
    "without",
    "from",
    "at",
    "by",
]
CONSONANTS = "BCDFGHJKLMNPQRSTVWXZ"


def pick(rng: random.Random, seq: Sequence[T]) -> T:
    """One item, faster than `rng.choice`."""
    return seq[int(rng.random() * len(seq))]


def fake(rng: random.Random) -> str:
    """A made-up lower-case word of one to three syllables."""
    n = 1 + (rng.random() < 0.8) + (rng.random() < 0.3)
    word = "".join([pick(rng, w.ONSETS) + pick(rng, w.NUCLEI) + pick(rng, w.CODAS) for _ in range(n)])
    return word.translate(ACCENTS) if rng.random() < 0.04 else word


def word(rng: random.Random) -> str:
    """A lower-case word, real or made up."""
    x = rng.random()
    if x < 0.45:
        return pick(rng, w.NOUNS)
    if x < 0.62:
        return pick(rng, w.ADJECTIVES)
    if x < 0.74:
        return pick(rng, w.VERBS)
    return fake(rng)


def cap(s: str) -> str:
    """First letter in upper case, the rest untouched."""
    return s[:1].upper() + s[1:]


def acronym(rng: random.Random) -> str:
    """Two to four capitals."""
    return "".join([pick(rng, CONSONANTS + "AEIO") for _ in range(2 + int(rng.random() * 3))])


def digits(rng: random.Random, n: int) -> str:
    """`n` digits."""
    return str(int(rng.random() * 10**n)).zfill(n)


def number(rng: random.Random) -> str:
    """A whole number, small ones more often."""
    return str(int(10 ** (rng.random() * 4)))


def small(rng: random.Random) -> str:
    """1 to 20."""
    return str(1 + int(rng.random() * 20))


def title_core(rng: random.Random) -> str:
    """One to four capitalised words."""
    x = rng.random()
    if x < 0.2:
        return cap(word(rng))
    if x < 0.5:
        return cap(pick(rng, w.ADJECTIVES)) + " " + cap(word(rng))
    if x < 0.62:
        return cap(word(rng)) + " " + pick(rng, SMALL) + " " + cap(word(rng))
    if x < 0.72:
        return "The " + cap(word(rng)) + ("" if rng.random() < 0.5 else " " + cap(word(rng)))
    if x < 0.8:
        return cap(word(rng)) + "'s " + cap(word(rng))
    if x < 0.86:
        return (
            cap(pick(rng, w.VERBS))
            + " "
            + pick(rng, ["the", "a", "my", "your", "like", "No", "It"])
            + " "
            + cap(word(rng))
        )
    if x < 0.9:
        return cap(word(rng)) + "-" + cap(word(rng))
    if x < 0.94:
        return cap(word(rng)) + " & " + cap(word(rng))
    return cap(word(rng)) + " " + cap(word(rng)) + " " + cap(word(rng))


def odd_title(rng: random.Random, s: str) -> str:
    """The rarer shapes of a title around the words `s`."""
    a, b = cap(word(rng)), cap(word(rng))
    x = rng.random()
    if x < 0.2:
        return f"{a} and the {b} of {cap(word(rng))}"
    if x < 0.3:
        return f"{a} {b}: {s} {pick(rng, w.ROMAN)}"
    if x < 0.4:
        return s + pick(
            rng,
            [
                " Vol. 2",
                " #1",
                " Part 2",
                ", Part One",
                " 3D",
                " HD",
                " Remastered",
                ": Special Edition",
                " - The Sequel",
            ],
        )
    if x < 0.5:
        return f"{a} 'n' {b}" if x < 0.44 else f"{a}, {b} and {cap(word(rng))}"
    if x < 0.6:
        return number(rng)
    if x < 0.7:
        return pick(rng, ["A ", "An ", "One ", "No ", "My ", "Our "]) + s
    if x < 0.8:
        return f"{s} {small(rng)}: {a} {pick(rng, SMALL)} {b}"
    if x < 0.88:
        return f"{number(rng)}: {s}"
    return f"{s} {pick(rng, ['of', 'and', 'in', 'for'])} {cap(fake(rng))}"


def title(rng: random.Random) -> str:
    """A title: words, subtitles, numerals, odd casing and punctuation."""
    s, x = title_core(rng), rng.random()
    if x < 0.5:
        return s
    if x < 0.55:
        return odd_title(rng, s)
    if x < 0.65:
        return s + pick(rng, [": ", ": ", " - ", ": The "]) + title_core(rng)
    if x < 0.71:
        return s + " " + str(2 + int(rng.random() * 8))
    if x < 0.76:
        return s + " " + pick(rng, w.ROMAN) + (": " + title_core(rng) if rng.random() < 0.4 else "")
    if x < 0.79:
        return s + " " + str(1960 + int(rng.random() * 65))
    if x < 0.81:
        return (
            s
            + " ("
            + pick(
                rng,
                [str(1960 + int(rng.random() * 65)), cap(word(rng)), "Live", "Part " + pick(rng, w.ROMAN)],
            )
            + ")"
        )
    if x < 0.84:
        return s.upper()
    if x < 0.87:
        return s.lower()
    if x < 0.9:
        return s + pick(rng, ["!", "?", "...", ".", "™", "+"])
    if x < 0.92:
        return number(rng) + " " + s
    if x < 0.94:
        return person(rng) + pick(rng, ["'s ", ": ", " and the "]) + s
    if x < 0.96:
        return cap(word(rng)) + cap(word(rng)) + ("" if rng.random() < 0.6 else digits(rng, 2))
    if x < 0.98:
        return acronym(rng) + pick(rng, ["", " ", ": "]) + pick(rng, [s, small(rng)])
    return s + " vs. " + title_core(rng)


def surname(rng: random.Random) -> str:
    """A family name, real or made up."""
    x = rng.random()
    if x < 0.6:
        return pick(rng, w.SURNAMES)
    if x < 0.93:
        return cap(fake(rng))
    return pick(rng, ["Mc", "O'", "van ", "de ", "von ", "Mac", "D'", "van der "]) + cap(fake(rng))


def first(rng: random.Random) -> str:
    """A given name, real or made up."""
    return pick(rng, w.FIRST_NAMES) if rng.random() < 0.75 else cap(fake(rng))


def person(rng: random.Random) -> str:
    """A person in one of the usual notations."""
    x = rng.random()
    if x < 0.68:
        return first(rng) + " " + surname(rng)
    if x < 0.74:
        return first(rng)
    if x < 0.79:
        return pick(rng, ["Dr.", "Dr", "Mr.", "Mrs.", "Ms.", "Prof.", "Professor", "Sir"]) + " " + surname(rng)
    if x < 0.86:
        return (
            pick(rng, CONSONANTS) + ". " + (pick(rng, CONSONANTS) + ". " if rng.random() < 0.3 else "") + surname(rng)
        )
    if x < 0.9:
        return first(rng) + " " + pick(rng, CONSONANTS) + ". " + surname(rng)
    if x < 0.94:
        return first(rng) + " " + surname(rng) + "-" + surname(rng)
    if x < 0.97:
        return first(rng) + "-" + first(rng) + " " + surname(rng)
    return first(rng) + " " + surname(rng) + pick(rng, [" Jr.", " III", " Sr."])


def company(rng: random.Random) -> str:
    """An organisation."""
    x = rng.random()
    if x < 0.3:
        return cap(word(rng)) + " " + pick(rng, w.COMPANY_TAILS)
    if x < 0.45:
        return cap(word(rng)) + " " + cap(word(rng)) + (" " + pick(rng, w.COMPANY_TAILS) if rng.random() < 0.6 else "")
    if x < 0.55:
        return cap(word(rng)) + cap(word(rng)) + ("" if rng.random() < 0.7 else " " + pick(rng, w.COMPANY_TAILS))
    if x < 0.63:
        return surname(rng) + pick(rng, [" & ", " and ", "-"]) + surname(rng)
    if x < 0.71:
        return cap(fake(rng))
    if x < 0.77:
        return acronym(rng) + ("" if rng.random() < 0.6 else " " + pick(rng, w.COMPANY_TAILS))
    if x < 0.82:
        return pick(rng, w.CITIES) + " " + pick(rng, w.COMPANY_TAILS)
    if x < 0.87:
        return small(rng) + cap(word(rng)) + ("" if rng.random() < 0.5 else " " + pick(rng, w.COMPANY_TAILS))
    if x < 0.9:
        return word(rng) + word(rng)
    if x < 0.93:
        return cap(word(rng)) + pick(rng, [".io", ".com", "-X", "ify", "ly", "!", "²", "soft", "tec"])
    if x < 0.96:
        return cap(word(rng)) + ", " + cap(word(rng)) + " & " + cap(word(rng))
    return pick(rng, w.ADJECTIVES).capitalize() + " " + cap(word(rng)) + " " + pick(rng, w.COMPANY_TAILS)


def city(rng: random.Random) -> str:
    """A town."""
    x = rng.random()
    if x < 0.5:
        return pick(rng, w.CITIES)
    if x < 0.72:
        return cap(fake(rng)) + (pick(rng, w.PLACE_TAILS) if rng.random() < 0.5 else "")
    if x < 0.8:
        return pick(
            rng, ["North ", "South ", "East ", "West ", "New ", "Saint ", "St. ", "Port ", "Upper ", "Old "]
        ) + cap(fake(rng))
    if x < 0.86:
        return cap(pick(rng, w.NOUNS)) + pick(rng, w.PLACE_TAILS)
    if x < 0.93:
        return pick(rng, w.CITIES) + ", " + pick(rng, w.COUNTRIES)
    return cap(fake(rng)) + pick(
        rng, ["-on-Sea", "-upon-" + cap(fake(rng)), " am " + cap(fake(rng)), "-le-" + cap(fake(rng))]
    )


def venue(rng: random.Random) -> str:
    """A restaurant, hotel, hall or shop."""
    x = rng.random()
    if x < 0.22:
        return "The " + cap(word(rng)) + " " + pick(rng, w.VENUE_TAILS)
    if x < 0.42:
        return cap(word(rng)) + " " + pick(rng, w.VENUE_TAILS)
    if x < 0.56:
        return "The " + cap(word(rng)) + pick(rng, [" ", " & ", " and "]) + cap(word(rng))
    if x < 0.66:
        return (
            pick(rng, [first(rng), surname(rng)])
            + "'s"
            + ("" if rng.random() < 0.5 else " " + pick(rng, w.VENUE_TAILS))
        )
    if x < 0.74:
        return (
            pick(rng, ["Café", "Hotel", "Bar", "Casa", "La", "Le", "El", "Chez", "Villa", "Il"]) + " " + cap(word(rng))
        )
    if x < 0.82:
        return pick(rng, w.CITIES) + " " + pick(rng, w.VENUE_TAILS)
    if x < 0.88:
        return word(rng) + " " + word(rng) + ("" if rng.random() < 0.5 else " " + pick(rng, w.VENUE_TAILS).lower())
    if x < 0.92:
        return pick(rng, w.VENUE_TAILS) + " " + small(rng)
    return title_core(rng)


def product(rng: random.Random) -> str:
    """A model name of a device, a car, a bottle."""
    x = rng.random()
    head = cap(word(rng)) if x < 0.8 else pick(rng, [acronym(rng), word(rng), cap(word(rng)) + cap(word(rng))])
    y = rng.random()
    if y < 0.15:
        return head
    if y < 0.35:
        return head + " " + pick(rng, w.PRODUCT_TAILS)
    if y < 0.5:
        return head + " " + number(rng)
    if y < 0.62:
        return (
            head
            + " "
            + pick(rng, CONSONANTS)
            + small(rng)
            + ("" if rng.random() < 0.6 else " " + pick(rng, w.PRODUCT_TAILS))
        )
    if y < 0.7:
        return head + "-" + small(rng) + pick(rng, ["", "b", "x", "i", "S"])
    if y < 0.9:
        return head + " " + cap(word(rng)) + ("" if rng.random() < 0.6 else " " + pick(rng, w.PRODUCT_TAILS))
    return head + " " + cap(word(rng)) + " " + small(rng)


def phrase(rng: random.Random) -> str:
    """A lower-case term of one to three words."""
    x = rng.random()
    if x < 0.3:
        return word(rng)
    if x < 0.75:
        return pick(rng, w.ADJECTIVES) + " " + pick(rng, w.NOUNS)
    if x < 0.85:
        return word(rng) + "-" + word(rng)
    if x < 0.93:
        return pick(rng, w.NOUNS) + " " + pick(rng, SMALL) + " " + pick(rng, w.NOUNS)
    return word(rng) + " " + word(rng) + " " + word(rng)


def term(rng: random.Random) -> str:
    """A common noun, sometimes with an adjective."""
    return pick(rng, w.NOUNS) if rng.random() < 0.6 else pick(rng, w.ADJECTIVES) + " " + pick(rng, w.NOUNS)


def code(rng: random.Random) -> str:
    """A reference, order or part number."""
    x = rng.random()
    if x < 0.3:
        return acronym(rng) + pick(rng, ["-", "", " ", "/"]) + digits(rng, 2 + int(rng.random() * 4))
    if x < 0.5:
        return "#" + digits(rng, 3 + int(rng.random() * 4))
    if x < 0.75:
        alphabet = CONSONANTS + "0123456789"
        return "".join([pick(rng, alphabet) for _ in range(5 + int(rng.random() * 4))])
    if x < 0.85:
        return digits(rng, 3) + "-" + digits(rng, 4)
    return word(rng) + pick(rng, ["_", "-", "."]) + pick(rng, [word(rng), digits(rng, 2), "v" + small(rng)])


def year(rng: random.Random) -> str:
    """1900 to 2030, recent ones more often."""
    return str(2030 - int(rng.random() ** 2 * 130))


SEASONS = ["spring", "summer", "autumn", "winter"]


def date(rng: random.Random) -> str:
    """A day in one of a dozen notations."""
    d, m, y, x = 1 + int(rng.random() * 28), int(rng.random() * 12), year(rng), rng.random()
    name = w.MONTHS[m]
    if x < 0.16:
        return f"{d} {name} {y}"
    if x < 0.32:
        return f"{name} {d}, {y}"
    if x < 0.42:
        return f"{d} {name}"
    if x < 0.5:
        suffix = (
            "st"
            if d % 10 == 1 and d != 11
            else "nd"
            if d % 10 == 2 and d != 12
            else "rd"
            if d % 10 == 3 and d != 13
            else "th"
        )
        return pick(
            rng,
            [
                f"{name} {d}{suffix}",
                f"the {d}{suffix} of {name}",
                f"{d}{suffix} {name} {y}",
                f"{name} {d}{suffix}, {y}",
            ],
        )
    if x < 0.58:
        return f"{y}-{m + 1:02d}-{d:02d}"
    if x < 0.66:
        return pick(rng, [f"{d:02d}/{m + 1:02d}/{y}", f"{d}.{m + 1}.{y}", f"{m + 1}/{d}/{y[2:]}", f"{d}/{m + 1}"])
    if x < 0.78:
        return pick(rng, w.WEEKDAYS)
    if x < 0.84:
        return pick(
            rng,
            [
                "tomorrow",
                "today",
                "next week",
                "tonight",
                "next month",
                "this weekend",
                "the day after tomorrow",
            ],
        )
    if x < 0.9:
        return pick(rng, ["next ", "this ", "early ", "late "]) + pick(rng, w.WEEKDAYS + w.MONTHS)
    if x < 0.92:
        return f"{name[:3]} {d}"
    if x < 0.95:
        return pick(
            rng, [f"{name[:3]} {d}, {y}", f"{d} {name[:3]} {y}", f"{pick(rng, w.WEEKDAYS)}, {name} {d}", f"the {pick(rng, SEASONS)} of {y}",
                  f"Q{1 + m // 3} {y}", f"{pick(rng, SEASONS)} {y}", f"{y}/{m + 1:02d}/{d:02d}", f"mid {y}", f"the end of {y}"]
        )  # fmt: skip
    return f"{name} {y}"


def clock(rng: random.Random) -> str:
    """A time of day."""
    h, m, x = (
        1 + int(rng.random() * 12),
        pick(rng, ["00", "15", "30", "45", digits(rng, 2)[:1].replace("9", "5") + "0"]),
        rng.random(),
    )
    if x < 0.3:
        return f"{h}:{m if int(m) < 60 else '20'}"
    if x < 0.5:
        return f"{h + 11:02d}:{m if int(m) < 60 else '05'}"
    if x < 0.85:
        return f"{h}{pick(rng, [' ', ''])}{pick(rng, ['am', 'pm', 'a.m.', 'p.m.'])}"
    return pick(
        rng,
        [
            "noon",
            "midnight",
            f"half past {w.NUMBER_WORDS[h]}",
            f"{w.NUMBER_WORDS[h]} o'clock",
            "8:30 pm",
            f"{h}.{m}",
        ],
    )


def price(rng: random.Random) -> str:
    """An amount of money."""
    n = number(rng)
    if rng.random() < 0.25:
        n += "." + pick(rng, ["99", "50", "95", digits(rng, 2)])
    if len(n) == 4 and n.isdigit() and rng.random() < 0.5:
        n = n[0] + "," + n[1:]
    x = rng.random()
    if x < 0.6:
        return pick(rng, "$$$££€€¥") + n
    return n + " " + pick(rng, ["euros", "dollars", "pounds", "EUR", "USD", "kr", "francs", "€"])


def span(rng: random.Random) -> str:
    """A range of numbers."""
    a = int(10 ** (rng.random() * 2.5))
    return f"{a}{pick(rng, ['-', '-', ' to ', '–'])}{a + 1 + int(rng.random() * 20)}"


def duration(rng: random.Random) -> str:
    """A length of time."""
    n = 1 + int(rng.random() * 48)
    unit = pick(rng, ["minute", "hour", "day", "week", "month", "year"])
    head = w.NUMBER_WORDS[n] if n <= 12 and rng.random() < 0.3 else str(n)
    return f"{head} {unit}{'s' if n != 1 else ''}"


def phone(rng: random.Random) -> str:
    """A telephone number."""
    x = rng.random()
    if x < 0.4:
        return f"{digits(rng, 3)}-{digits(rng, 4)}"
    if x < 0.7:
        return f"+{small(rng)} {digits(rng, 3)} {digits(rng, 3)} {digits(rng, 3)}"
    return "0" + digits(rng, 4) + " " + digits(rng, 6)


def email(rng: random.Random) -> str:
    """An e-mail address."""
    return f"{first(rng).lower()}{pick(rng, ['.', '_', '', digits(rng, 2)])}{word(rng)}@{word(rng)}.{pick(rng, ['com', 'org', 'net', 'co.uk', 'de'])}"


def address(rng: random.Random) -> str:
    """A street address."""
    s = f"{number(rng)[:3]} {cap(word(rng))} {pick(rng, w.STREETS)}"
    x = rng.random()
    return s if x < 0.6 else s.split(" ", 1)[1] if x < 0.8 else s + ", " + city(rng)


def percent(rng: random.Random) -> str:
    """A percentage."""
    return number(rng)[:2] + pick(rng, ["%", "%", " %", " percent", ".5%"])


def nationality(rng: random.Random) -> str:
    """A country."""
    return pick(rng, w.COUNTRIES)


def colour(rng: random.Random) -> str:
    """A colour, sometimes shaded."""
    return (pick(rng, ["dark ", "light ", "matte ", "pale ", "bright "]) if rng.random() < 0.25 else "") + pick(
        rng, w.COLOURS
    )


def score(rng: random.Random) -> str:
    """A sports result or mark."""
    a, b = int(rng.random() * 8), int(rng.random() * 8)
    return pick(rng, [f"{a}-{b}", f"{a}:{b}", f"{a} to {b}", f"{number(rng)[:3]}-{number(rng)[:3]}"])


SAMPLERS: dict[str, Sampler] = {
    "title": title, "person": person, "company": company, "city": city, "venue": venue, "product": product,
    "phrase": phrase, "term": term, "code": code, "year": year, "date": date, "clock": clock, "price": price,
    "span": span, "duration": duration, "phone": phone, "email": email, "address": address, "percent": percent,
    "country": nationality, "colour": colour, "score": score, "number": number, "small": small, "word": word,
}  # fmt: skip


def measure(unit: str) -> Sampler:
    """Sampler of an amount with `unit`."""

    def sample(rng: random.Random) -> str:
        n = number(rng) if rng.random() < 0.75 else f"{small(rng)}.{digits(rng, 1)}"
        return n + ("" if rng.random() < 0.15 and len(unit) < 4 else " ") + unit

    return sample
