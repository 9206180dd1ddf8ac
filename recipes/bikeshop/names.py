"""Invented names and the surface forms of closed values."""

from __future__ import annotations

import random


def words(text: str) -> list[str]:
    """The items of a text, parted by commas where there are any."""
    return [item.strip() for item in text.split("," if "," in text else None)]


BRAND_STARTS = words(
    "Vel Ost Tar Bram Quil Hess Lun Mor Fen Gar Ild Jor Kess Nor Pell Rav Sten Thal Urs Wex Yar Zel Cald "
    "Dov Esk Bryn Holt Ingl Lark Marl Tov Brek Ondr Sael Grev Hald Ros Tamb Kvar Lind"
)
BRAND_ENDS = words("mora rund wick ano ett aro dale vik ley isk ado una ern ova enne mark en by ander oss ile")
BRAND_TAILS = words("Cycles Bikeworks Bicycles Velo")

MODEL_WORDS = words(
    "Sorrel Kelpie Fennel Magpie Osprey Thistle Bracken Dunlin Heron Juniper Larch Marten Otter Plover "
    "Quarry Rowan Saffron Teasel Umber Vixen Willow Yarrow Zephyr Anchor Badger Cinder Drifter Ember "
    "Falcon Gannet Harrier Ibex Jackdaw Kite Lantern Merlin Nomad Orchard Pebble Quiver Raven Sparrow "
    "Tundra Vagabond Wander Bolt Comet Dagger Echo Flint Granite Hornet Ivory Jigsaw Karst Lynx Meteor "
    "Nimbus Onyx Piston Quartz Ripple Slate Tempest Vortex Whistle Basalt Cobalt Delta Fjord Gale Hazel "
    "Isle Jasper Lagoon Mistral Nettle Opal Prairie Rapid Summit Tiller Vesper Warbler Acorn Bramble "
    "Clover Dipper Elder Ferry Glider Heather Kernel Linnet Mallow Oriole Puffin Rambler Siskin Tansy "
    "Voyager Wicket"
)
TRIMS = words("Pro Sport Lite Comp Tour Prime Evo Deluxe Select Club")

FIRST_NAMES = words(
    "Aisha Ben Carla Dmitri Elsie Femi Greta Hamish Ines Jonah Keiko Liam Maeve Nikhil Olga Pedro Quinn "
    "Rosa Sami Tessa Uma Viktor Wendy Xavier Yusuf Zoe Alan Bridget Cem Deborah Ewan Farah Gordon Hanna "
    "Idris Joyce Karim Lotte Marcus Nadia Owen Priya Ruth Stefan Tomasz Ursula Vera Will Yvonne Kofi Mei "
    "Anders Lucia Patrick Noor"
)
LAST_NAMES = words(
    "Abbott Barlow Castellan Dunmore Eriksen Fairweather Gill Haddad Iqbal Jessop Kowal Lindqvist Marsh "
    "Nakata Okafor Pemberton Quigley Rossi Sandhu Tillman Ulrich Vance Whitlock Yamane Zeller Amadi Bright "
    "Cho Delgado Ellery Finch Grady Horvat Ibrahim Jarvis Keane Lowther Mbeki Novak Osei Parrish Rao Stone "
    "Thorne Underhill Varga Weller Young Aldous Birch Cotter Dacosta Fry Garland Hobbs"
)

WEEKDAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
DAY_PARTS = words("morning afternoon evening")

TYPES: dict[str, tuple[str, ...]] = {
    "road": ("road bike", "racer"),
    "mountain": ("mountain bike", "MTB"),
    "gravel": ("gravel bike", "gravel grinder"),
    "city": ("city bike", "commuter bike"),
    "folding": ("folding bike", "folder"),
    "cargo": ("cargo bike", "box bike"),
    "kids": ("kids' bike", "children's bike"),
}
ELECTRIC_PRE: dict[str, tuple[str, ...]] = {
    "yes": ("electric", "motor-assisted"),
    "no": ("non-electric", "unpowered"),
}
ELECTRIC_POST: dict[str, tuple[str, ...]] = {
    "yes": ("with a motor", "with electric assist"),
    "no": ("without a motor", "without electric assist"),
}
SIZE_WORDS = {"xs": "extra small", "s": "small", "m": "medium", "l": "large", "xl": "extra large"}
LEVELS: dict[str, tuple[str, ...]] = {
    "beginner": ("a complete beginner", "a total novice"),
    "intermediate": ("an intermediate rider", "a rider of middling experience"),
    "expert": ("an expert", "a seasoned racer"),
}

# name -> US spelling; parts are written in British English here.
SIDED_PARTS = words(
    "brake,brake lever,pedal,wheel,tyre,hub,rim,light,axle,mudguard,shifter,brake cable,brake rotor,"
    "crank arm,brake calliper"
)
SINGLE_PARTS = words(
    "chain,cassette,bottom bracket,headset,saddle,seatpost,stem,handlebar,kickstand,bell,rear rack,"
    "gear cable,rear mech,front mech,chainring,freewheel,inner tube,chain guard,bottle cage,"
    "suspension fork,derailleur hanger,child seat,dropper post,phone mount,frame bag,seat clamp,rear shock,"
    "pump"
)
FAULTY_SIDED = [part for part in SIDED_PARTS if part not in ("light", "mudguard", "brake cable")]
FAULTY_SINGLE = words(
    "chain,cassette,bottom bracket,headset,saddle,seatpost,stem,handlebar,rear rack,rear mech,front mech,"
    "chainring,freewheel,suspension fork,chain guard,rear shock,dropper post"
)
PLURAL_PARTS = words(
    "brake pads,spokes,handlebar grips,pedals,gear cables,mudguards,inner tubes,brake levers,disc rotors,"
    "toe clips,jockey wheels,wheel bearings,tyres,brake hoses,lights,panniers,stabilisers,cleats,"
    "chainring bolts,brake blocks"
)
MATERIALS = words(
    "carbon,alloy,steel,titanium,waterproof,heavy-duty,lightweight,aftermarket,10-speed,11-speed,12-speed,"
    "black,red,silver"
)
FITS = {  # which qualifiers make sense for which orderable part
    "chain": (8, 9, 10, 7, 5),
    "cassette": (8, 9, 10, 7),
    "saddle": (0, 6, 11, 12),
    "seatpost": (0, 1, 3, 11),
    "stem": (0, 1, 3, 13),
    "handlebar": (0, 1, 2, 3),
    "frame bag": (4, 11, 12),
    "bottle cage": (0, 1, 6, 11, 12),
    "rear rack": (2, 5, 1, 11),
    "kickstand": (5, 1, 11),
    "child seat": (7, 11),
    "inner tube": (5, 6),
    "suspension fork": (7, 6),
    "panniers": (4, 12, 11),
    "pedals": (1, 3, 13),
    "handlebar grips": (11, 12),
    "inner tubes": (5, 6),
    "mudguards": (2, 11, 13),
}
US_WORDS = (
    ("tyre", "tire"),
    ("mudguard", "fender"),
    ("rear mech", "rear derailleur"),
    ("front mech", "front derailleur"),
    ("calliper", "caliper"),
    ("stabilisers", "training wheels"),
    ("colour", "color"),
    ("favourite", "favorite"),
    ("neighbour", "neighbor"),
    ("round the corner", "around the corner"),
    ("cheque", "check"),
    ("my mum", "my mom"),
    ("organise", "organize"),
    ("apologise", "apologize"),
)


def brand(rng: random.Random) -> str:
    if rng.random() < 0.08:
        first, second = rng.sample(LAST_NAMES, 2)
        return f"{first} & {second}"
    name = rng.choice(BRAND_STARTS) + rng.choice(BRAND_ENDS)
    return f"{name} {rng.choice(BRAND_TAILS)}" if rng.random() < 0.12 else name


def model(rng: random.Random) -> str:
    word = rng.choice(MODEL_WORDS)
    roll = rng.random()
    if roll < 0.3:
        return f"{word} {rng.randint(2, 9)}"
    if roll < 0.5:
        return f"{word} {rng.randint(2, 95) * 10}"
    if roll < 0.7:
        return f"{word} {rng.choice('ABCDGHKNPRTVXZ')}{rng.randint(1, 60)}"
    if roll < 0.92:
        return f"{word} {rng.choice(TRIMS)}"
    return f"{word} {rng.choice(TRIMS)} {rng.randint(2, 9)}"


def customer(rng: random.Random) -> str:
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"


def order_number(rng: random.Random) -> str:
    digits = rng.randint(1000, 99999)
    letters = "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=2))
    return rng.choice((f"{letters}-{digits}", f"{letters}{digits}", f"{digits}", f"{digits}-{letters[0]}"))


def price(rng: random.Random, us: bool, small: bool, service: bool) -> str:
    big = rng.randint(8, 60) * 5 if service else rng.randint(7, 130) * 25 + rng.choice((0, 0, 0, -1, 20))
    amount = rng.randint(4, 70) if small and not service else big
    cents = (
        f"{amount}.{rng.choice(('50', '99', '95'))}" if small and not service and rng.random() < 0.4 else str(amount)
    )
    if us:
        forms = [f"${cents}", f"${cents}", f"${cents}", f"{amount} dollars", f"{amount} bucks"]
    else:
        forms = [*[f"£{cents}"] * 3, f"€{cents}", f"{amount} pounds", f"{amount} quid", f"{amount} euros"]
    if not small and not service and rng.random() < 0.06:
        forms = [rng.choice(("two", "three", "one and a half", "four", "two and a half")) + " grand"]
    return rng.choice(forms)


def date(rng: random.Random, us: bool, past: bool) -> tuple[str, str]:
    """A date and the word that goes before it in "... on Friday" (may be empty)."""
    day, month, weekday = rng.randint(1, 28), rng.choice(MONTHS), rng.choice(WEEKDAYS)
    suffix = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd"}.get(day, "th")
    roll = rng.random()
    if roll < 0.3:
        return weekday, "on "
    if roll < 0.42:
        return f"{weekday} {rng.choice(DAY_PARTS)}", "on "
    if roll < 0.56:
        return f"{'last' if past else rng.choice(('next', 'this'))} {weekday}", ""
    if roll < 0.64:
        if past:
            return rng.choice(("yesterday", "yesterday morning", "last night", "last week")), ""
        return rng.choice(("tomorrow", "tomorrow morning", "tomorrow afternoon", "this weekend", "next week")), ""
    if roll < 0.74:
        return f"{day}{suffix}", "on the "
    if us:
        return rng.choice((f"{month} {day}", f"{month} {day}{suffix}", f"{weekday} {month} {day}")), "on "
    return rng.choice((f"{day} {month}", f"{day}{suffix} {month}", f"{weekday} {day} {month}")), "on "


def size(rng: random.Random) -> tuple[str, str, str]:
    """A frame size: its class, a form that fits before a noun, and one that fits after "in"."""
    label = rng.choices(tuple(SIZE_WORDS), (1, 3, 4, 4, 2))[0]
    return label, SIZE_WORDS[label], rng.choice((SIZE_WORDS[label], f"size {label.upper()}"))


def fault_part(rng: random.Random) -> str:
    if rng.random() < 0.55:
        return f"{rng.choice(('front', 'rear', 'left', 'right'))} {rng.choice(FAULTY_SIDED)}"
    return rng.choice(FAULTY_SINGLE)


def fixed_side(part: str, rng: random.Random) -> str:
    """Pedals, levers and the like are left or right; wheels and the like are front or rear."""
    side, _, noun = part.partition(" ")
    if side not in ("front", "rear", "left", "right") or part in SINGLE_PARTS:
        return part
    lateral = noun in ("pedal", "brake lever", "shifter", "crank arm")
    return f"{rng.choice(('left', 'right') if lateral else ('front', 'rear'))} {noun}"


def ordered_part(rng: random.Random, plural: bool) -> str:
    part = (
        rng.choice(PLURAL_PARTS) if plural else rng.choice((*SINGLE_PARTS, *(f"front {side}" for side in SIDED_PARTS)))
    )
    part = fixed_side(part, rng)
    if part in FITS and rng.random() < 0.45:
        return f"{MATERIALS[rng.choice(FITS[part])]} {part}"
    return part
