"""Answer formats and the instructions that describe them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from realise import Said
from schema import Schema
from values import pick

Value = str | list[str]


@dataclass(slots=True)
class Style:
    """An output format. `kind` picks the layout, the rest its small conventions."""

    kind: str
    list_join: str
    joiner: str
    compact: bool
    key: str
    args: str
    null: str


KINDS = (
    ["func"] * 71
    + ["func_eq"] * 3
    + ["func_colon"] * 2
    + ["json_flat"] * 8
    + ["json_nested"] * 6
    + ["json_entities"] * 2
    + ["json_plain"] * 3
    + ["pairs", "pairs", "xml", "label", "lines"]
)


def make_style(rng: random.Random) -> Style:
    """A random output format."""
    return Style(
        pick(rng, KINDS),
        pick(rng, [", "] * 9 + [",", "; ", "|"]),
        pick(rng, [", "] * 5 + [" & ", "; ", " ", " and "]),
        rng.random() < 0.25,
        pick(rng, ["function", "intent", "act", "type", "action", "label", "name", "event"]),
        pick(rng, ["slots", "arguments", "attributes", "entities", "values", "args", "parameters", "fields"]),
        pick(rng, ["?", "", "unknown"]),
    )


def _items(schema: Schema, said: Said) -> list[tuple[str, Value | None]]:
    """Named values in the schema's order (without one: in the facts' order); None marks an asked attribute."""
    if not schema.rank:
        return [(schema.slots[f.slot].name, f.out) for f in said.facts]
    found: list[tuple[int, str, Value | None]] = [
        (schema.rank[f.slot], schema.slots[f.slot].name, f.out) for f in said.facts
    ]
    found += [(schema.rank[i], schema.slots[i].name, None) for i in said.asked]
    found.sort(key=lambda item: item[0])
    return [(name, value) for _, name, value in found]


def _flat(value: Value | None, style: Style) -> str:
    return "" if value is None else style.list_join.join(value) if isinstance(value, list) else value


def _jsonable(value: Value | None, style: Style) -> str | list[str] | None:
    return (None if not style.null else style.null) if value is None else value


def render(schema: Schema, style: Style, acts: list[Said]) -> str:
    """The answer for one or several acts."""
    kind = style.kind
    if kind == "label":
        return style.joiner.join([a.function for a in acts])
    if kind.startswith("json"):
        found: list[object] = []
        for said in acts:
            items = {name: _jsonable(value, style) for name, value in _items(schema, said)}
            if kind == "json_flat":
                found.append({style.key: said.function, **items})
            elif kind == "json_nested":
                found.append({style.key: said.function, style.args: items})
            elif kind == "json_plain":
                found.append(items)
            else:
                for name, value in items.items():
                    for one in value if isinstance(value, list) else [value]:
                        found.append(
                            {
                                "type" if style.key == "type" else "entity": name,
                                "text" if style.compact else "value": one,
                            }
                        )
        body = found if kind == "json_entities" or len(found) != 1 else found[0]
        return json.dumps(body, ensure_ascii=False, separators=(",", ":") if style.compact else (", ", ": "))
    parts = []
    for said in acts:
        items = _items(schema, said)
        if kind == "func":
            bare = schema.asked == "bare"
            mark = schema.asked if schema.asked == "?" else ""
            args = [
                (name if bare else f"{name}[{mark}]") if value is None else f"{name}[{_flat(value, style)}]"
                for name, value in items
            ]
            parts.append(f"{said.function}({', '.join(args)})")
        elif kind in ("func_eq", "func_colon"):
            sep = "=" if kind == "func_eq" else ": "
            args = [
                f'{name}{sep}"{_flat(value, style)}"' if style.compact else f"{name}{sep}{_flat(value, style)}"
                for name, value in items
            ]
            parts.append(f"{said.function}({', '.join(args)})")
        elif kind == "xml":
            inner = "".join([f"<{name}>{_flat(value, style)}</{name}>" for name, value in items])
            parts.append(f"<{said.function}>{inner}</{said.function}>")
        elif kind == "lines":
            parts.append(
                "\n".join(
                    [
                        f"{style.key}: {said.function}",
                        *[f"{name}: {_flat(value, style)}" for name, value in items],
                    ]
                )
            )
        else:
            sep = " = " if style.compact else ": "
            parts.append(
                "; ".join(
                    [
                        f"{style.key}{sep}{said.function}",
                        *[f"{name}{sep}{_flat(value, style)}" for name, value in items],
                    ]
                )
            )
    return ("\n" if kind in ("xml", "lines", "pairs") else style.joiner).join(parts)


FORM = {
    "func": "function(attribute[value], attribute[value])|a function with its attributes in square brackets, like f(a[x], b[y])|"
    "function(attribute1[value1], attribute2[value2], ...)|one function call whose arguments are written attribute[value]",
    "func_eq": "function(attribute=value, attribute=value)|a call with keyword arguments, f(a=x, b=y)",
    "func_colon": "function(attribute: value, attribute: value)|a call with named arguments such as f(a: x, b: y)",
    "json_flat": 'a JSON object with the key "{key}" and one key per attribute|one flat JSON object; "{key}" holds the label',
    "json_nested": 'a JSON object {{"{key}": ..., "{args}": {{...}}}}|JSON with "{key}" and, under "{args}", the attributes',
    "json_entities": "a JSON list of entities, each with its type and its text|a JSON array with one object per entity",
    "json_plain": "a JSON object of the attributes that occur|JSON with one key per attribute found",
    "pairs": "pairs on one line, separated by semicolons, {key} first|key and value pairs joined by semicolons",
    "xml": "XML, one element per attribute inside the function's element|tags: <function><attribute>value</attribute></function>",
    "lines": "one attribute per line, starting with {key}|lines of the form attribute: value",
    "label": "the function's name alone|only the label",
}
TASKS = [
    "Convert the sentence into a formal record of what it says.", "Work out what the sentence says and write it down as data.",
    "Write what is meant by the sentence, as a machine would store it.", "For each sentence, produce the record behind it.",
    "Extract the structure from the text below.", "Parse the message.", "You turn text into structured data.",
    "Read the sentence and write down what it says in structured form.", "Translate the utterance into a formal representation.",
    "Your task is to extract information from the input.", "Represent the following text as structured output.",
    "Identify the intent and the attributes in the text.", "Do semantic parsing of the user's sentence.",
    "Map the text to a function with attributes.", "Annotate the sentence.", "Fill in the slots from the text.",
    "What does this sentence express? Answer in structured form.", "Find the function and all attribute values.",
    "You are an information extraction system.", "Analyse the text about {d}.", "The text is about {d}. Extract its meaning.",
    "Texts about {d} come in; give each one's structure.", "Write the meaning of this {d} sentence as data.",
    "Label the sentence and pick out its values.", "Turn what the customer says into a record.",
]  # fmt: skip
FORM_LEAD = [
    "The output has the form {f}.",
    "Answer with {f}.",
    "Format: {f}.",
    "Use {f}.",
    "Return {f}.",
    "Write {f}.",
    "Output: {f}.",
    "Respond in this format: {f}.",
]
FUNC_LEAD = [
    "These are the functions: {l}.", "Functions: {l}", "Allowed functions: {l}.", "The function is what the sentence does, out of {l}.",
    "As function, take the best fit from {l}.", "What the speaker does is called one of {l}.",
    "Choose the function from {l}.", "Possible intents: {l}", "{k} is one of {l}.", "The available functions are {l}.", "Labels:\n{b}",
    "Functions:\n{b}", "Pick one function of these:\n{b}",
]  # fmt: skip
ATTR_LEAD = [
    "These are the attributes: {l}.", "Attributes: {l}", "No attribute may be used but {l}.", "Attribute names come from {l}.", "Allowed attributes: {l}.", "Possible attributes are {l}.",
    "Choose attributes from {l}.", "Slots: {l}", "The values belong to these attributes: {l}", "Use only the attributes {l}.",
    "Attributes:\n{b}", "Fields:\n{b}", "These attributes may occur:\n{b}", "Known keys: {l}",
]  # fmt: skip
CLOSERS = [
    "Answer with the structure only.", "Do not explain.", "Leave out attributes that are not mentioned.", "Copy names as they are written.",
    "No other text.", "Only output the result.", "Be exact.", "Do not invent values.", "Every value mentioned should appear.",
    "An attribute occurs at most once.", "Give one line of output.",
]  # fmt: skip
CONTEXT = [
    "The sentences come from conversations about {d}s.", "A customer and an assistant talk about {d}s.", "Every sentence is about one {d} or about {d}s in general.",
    "The input is one utterance of a dialogue.", "People write about {d}s in their own words, and a database needs the facts.", "Some sentences are questions, others are statements.",
    "The wording varies a lot, the output must not.", "We use this to fill a catalogue of {d}s.", "Values may be paraphrased in the text; use the names given here.",
    "Names, dates and numbers are copied from the text.", "The speaker may ask, tell, or give an opinion.", "Think about what the speaker wants and which details are given.",
    "What is not said must not be in the output.", "The structure has a function and, for everything that is said about the {d}, an attribute with its value.",
    "The output is read by a program, so it has to follow the format.", "Negated things count too: they have the value for no.", "The texts are short and informal.",
]  # fmt: skip
ORDER = [
    "Keep the attributes in the order of this list.", "Attributes appear in the order in which they are listed here.", "Keep the order of the attributes.",
    "In the output the attributes have the same order as above.", "The order of the attributes is fixed, as listed.",
]  # fmt: skip
MENTIONED = [
    "Several values of one attribute are joined in the order in which they are mentioned.", "List values as they come in the sentence.",
    "If an attribute has several values, keep their order in the text and separate them with '{j}'.",
]  # fmt: skip
SORTED = [
    "Several values of one attribute stand in alphabetical order.",
    "Sort the values of an attribute alphabetically.",
]
BY_SCHEMA = ["Several values of one attribute stand in the order in which the values are listed."]
BOOLS = [
    "Attributes that hold or do not hold have the values {y} and {n}.", "Yes/no attributes are {y} or {n}.", "Use {y} and {n} for things that are true or not.",
    "Write {y} if the thing has it and {n} if not.",
]  # fmt: skip
ASKED = {
    "": [
        "An attribute that is asked for has empty brackets.",
        "Leave the brackets empty for what is asked.",
        "If a value is asked for, write attribute[].",
    ],
    "?": ["An attribute that is asked for has the value ?.", "Put ? where the speaker asks for the value."],
    "bare": [
        "An attribute that is asked for stands without brackets.",
        "Write only the attribute's name for what is asked.",
    ],
}


def _names(rng: random.Random, names: list[str]) -> str:
    """Names as a python-like list, commas, a set, quoted or plain."""
    x = rng.random()
    if x < 0.4:
        return "[" + ", ".join([f"'{n}'" for n in names]) + "]"
    if x < 0.65:
        return ", ".join(names)
    if x < 0.75:
        return json.dumps(names, ensure_ascii=False)
    if x < 0.82:
        return " | ".join(names)
    if x < 0.9:
        return "(" + ", ".join(names) + ")"
    return ", ".join([f"`{n}`" for n in names])


def unusual(schema: Schema, index: int) -> bool:
    """Whether a slot's values are spelt in a way that a sentence does not show."""
    slot = schema.slots[index]
    if slot.attr.kind == "bool":
        return slot.values[-1:] != ["yes"]
    if slot.attr.scale is not None:
        return slot.values != slot.attr.scale.schemes[0]
    return any("(" in value or (slot.surfaces and value not in slot.attr.values) for value in slot.values)


def _describe(rng: random.Random, schema: Schema, index: int) -> str:
    """An attribute's name with its allowed values, where it has a closed set."""
    slot = schema.slots[index]
    if not slot.values:
        return slot.name
    values = list(dict.fromkeys(slot.values))
    open_, close = pick(rng, [(" (", ")"), (": ", ""), (" [", "]"), (" = {", "}"), (" (one of ", ")")])
    return slot.name + open_ + pick(rng, [", ", " | ", "/", ", "]).join(values) + close


def conventions(rng: random.Random, schema: Schema, style: Style, ordered: bool, told: bool) -> list[str]:
    """Sentences on the order and the spelling of attributes and values; `told`: the values are listed already."""
    found: list[str] = []
    if ordered and rng.random() < 0.3:
        found.append(pick(rng, ORDER))
    bools = [s.values for s in schema.slots if s.attr.kind == "bool" and len(s.values) == 2]
    if bools and (rng.random() < 0.15 if bools[0][1] == "yes" else not told and rng.random() < 0.85):
        quote = pick(rng, ["", "", "'", '"'])
        yes, no = f"{quote}{bools[0][1]}{quote}", f"{quote}{bools[0][0]}{quote}"
        found.append(pick(rng, BOOLS).replace("{y}", yes).replace("{n}", no))
    if any(s.attr.many for s in schema.slots):
        if schema.list_order == "sentence":
            if rng.random() < 0.2:
                found.append(pick(rng, MENTIONED).replace("{j}", style.list_join.strip()))
        elif rng.random() < 0.9:
            found.append(pick(rng, SORTED if schema.list_order == "sorted" else BY_SCHEMA))
    told_asked = rng.random() < (0.2 if schema.asked == "" else 0.6)
    if told_asked and style.kind == "func" and any(act.asks for act, _ in schema.functions):
        found.append(pick(rng, ASKED[schema.asked]))
    if schema.lower and rng.random() < 0.6:
        found.append("Everything is lower-case.")
    return found


def instruction(rng: random.Random, schema: Schema, style: Style) -> str:
    """A random instruction for the schema; one in 25 lists nothing."""
    topic = schema.domain.nouns[0]
    task = pick(rng, TASKS).replace("{d}", topic if rng.random() < 0.4 else topic + "s")
    form = (
        pick(rng, FORM[style.kind].split("|"))
        .replace("{key}", style.key)
        .replace("{args}", style.args)
        .replace("{{", "{")
        .replace("}}", "}")
    )
    form = pick(rng, FORM_LEAD).replace("{f}", form)
    short = rng.random() < 0.04
    if short:
        return task if rng.random() < 0.5 else f"{task} {form}"
    used = schema.functions
    functions = [(name, act.about) for act, name in used]
    if rng.random() < 0.6:
        functions.sort(key=lambda _: rng.random())
    order = (
        sorted(range(len(schema.slots)), key=schema.rank.__getitem__) if schema.rank else list(range(len(schema.slots)))
    )
    if not schema.listed:
        rng.shuffle(order)
    if rng.random() < 0.02:
        order = [i for i in order if rng.random() < 0.9]
    # A group's instruction gives all value sets, those that are unusual, or hardly any.
    described = rng.random()
    odds = (0.9, 0.6) if described < 0.3 else (0.85, 0.05) if described < 0.7 else (0.1, 0.02)
    labels = [
        _describe(rng, schema, i) if rng.random() < odds[0 if unusual(schema, i) else 1] else schema.slots[i].name
        for i in order
    ]
    detailed = any(len(x) > 40 for x in labels)
    about = rng.random() < 0.25
    fl = _names(rng, [n for n, _ in functions])
    bullets = "\n".join([f"- {n}: {a}" if about else f"- {n}" for n, a in functions])
    func_part = (
        pick(rng, FUNC_LEAD[-3:] if about else FUNC_LEAD)
        .replace("{l}", fl)
        .replace("{b}", bullets)
        .replace("{k}", style.key)
    )
    if detailed:
        al, ab = "; ".join(labels), "\n".join([f"- {x}" for x in labels])
    else:
        al, ab = _names(rng, labels), "\n".join([f"- {x}" for x in labels])
    attr_part = pick(rng, ATTR_LEAD).replace("{l}", al).replace("{b}", ab)
    if rng.random() < 0.06 and style.kind == "func":
        signature = "\n".join([f"{n}({', '.join([schema.slots[i].name for i in order])})" for n, _ in functions])
        func_part, attr_part = "Signatures:\n" + signature, ""
    elif rng.random() < 0.2 and style.kind.startswith("json"):
        props = {
            schema.slots[i].name: {"enum": list(dict.fromkeys(v))}
            if (v := schema.slots[i].values) and described < 0.5
            else {"type": "string"}
            for i in order
        }
        attr_part = "JSON schema: " + json.dumps({"properties": props}, ensure_ascii=False)
    parts = (
        [form, func_part, attr_part]
        if style.kind != "json_plain" and style.kind != "json_entities"
        else [form, attr_part]
    )
    if rng.random() < 0.3:
        parts.sort(key=lambda _: rng.random())
    if rng.random() < 0.15:
        parts = [p for p in parts if p is not form]
    notes = conventions(rng, schema, style, bool(schema.rank) and schema.listed, odds[0] > 0.5)
    if len(notes) > 1 and rng.random() < 0.5:
        parts.append(" ".join(notes))
    else:
        parts += notes
    if rng.random() < 0.5:
        context = [c.replace("{d}", topic) for c in rng.sample(CONTEXT, 1 + int(rng.random() * 3))]
        task = f"{task} {' '.join(context)}"
    if rng.random() < 0.25:
        parts.append(pick(rng, CLOSERS))
    sep = pick(rng, ["\n", "\n", " ", "\n\n"])
    text = sep.join([task, *[p for p in parts if p]])
    if rng.random() < 0.12:
        text += pick(rng, ["\n\nSentence:", "\nInput:", "\nText:", "\n\nHere is the text:"])
    return text
