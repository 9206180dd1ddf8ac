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
    ["func"] * 22
    + ["func_eq", "func_eq", "func_colon"]
    + ["json_flat"] * 5
    + ["json_nested"] * 4
    + ["json_entities"] * 2
    + ["json_plain"] * 2
    + ["pairs", "pairs", "xml", "label", "lines"]
)


def make_style(rng: random.Random) -> Style:
    """A random output format."""
    return Style(
        pick(rng, KINDS),
        pick(rng, [", ", ", ", ", ", ",", "; ", "|"]),
        pick(rng, [", ", ", ", ", ", " & ", "; ", " ", " and "]),
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
                f'{name}{sep}"{_flat(value, style)}"'
                if style.compact
                else f"{name}{sep}{_flat(value, style)}"
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
    "Convert the sentence into a meaning representation.", "Given a target sentence, construct the underlying structure.",
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
    "The function must be one of the following: {l}.", "Functions: {l}", "Allowed functions: {l}.", "It describes the sentence with one of: {l}",
    "Choose the function from {l}.", "Possible intents: {l}", "{k} is one of {l}.", "The available functions are {l}.", "Labels:\n{b}",
    "Functions:\n{b}", "Pick one function of these:\n{b}",
]  # fmt: skip
ATTR_LEAD = [
    "The attributes must be one of the following: {l}.", "Attributes: {l}", "Allowed attributes: {l}.", "Possible attributes are {l}.",
    "Choose attributes from {l}.", "Slots: {l}", "The values belong to these attributes: {l}", "Use only the attributes {l}.",
    "Attributes:\n{b}", "Fields:\n{b}", "These attributes may occur:\n{b}", "Known keys: {l}",
]  # fmt: skip
CLOSERS = [
    "Answer with the structure only.", "Do not explain.", "Leave out attributes that are not mentioned.", "Copy names as they are written.",
    "No other text.", "Keep the order of the attributes.", "Only output the result.", "Be exact.",
]  # fmt: skip


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


def _describe(rng: random.Random, schema: Schema, index: int) -> str:
    """An attribute's name with its allowed values, where it has a closed set."""
    slot = schema.slots[index]
    if not slot.values:
        return slot.name
    values = list(dict.fromkeys(slot.values))
    open_, close = pick(rng, [(" (", ")"), (": ", ""), (" [", "]"), (" = {", "}")])
    return slot.name + open_ + pick(rng, [", ", " | ", "/", ", "]).join(values) + close


def instruction(rng: random.Random, schema: Schema, style: Style) -> str:
    """A random instruction for the schema; one in ten lists nothing."""
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
    short = rng.random() < 0.1
    if short:
        return task if rng.random() < 0.5 else f"{task} {form}"
    used = schema.functions
    functions = [(name, act.about) for act, name in used]
    if rng.random() < 0.6:
        functions.sort(key=lambda _: rng.random())
    order = (
        sorted(range(len(schema.slots)), key=schema.rank.__getitem__)
        if schema.rank
        else list(range(len(schema.slots)))
    )
    if not schema.listed:
        rng.shuffle(order)
    if rng.random() < 0.02:
        order = [i for i in order if rng.random() < 0.9]
    described = rng.random()
    labels = [
        _describe(rng, schema, i)
        if rng.random() < (0.85 if described < 0.5 else 0.1)
        else schema.slots[i].name
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
        signature = "\n".join(
            [f"{n}({', '.join([schema.slots[i].name for i in order])})" for n, _ in functions]
        )
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
    if schema.list_order == "sorted" and any(s.attr.many for s in schema.slots):
        parts.append("Several values of one attribute stand in alphabetical order.")
    if schema.lower and rng.random() < 0.5:
        parts.append("Everything is lower-case.")
    if rng.random() < 0.25:
        parts.append(pick(rng, CLOSERS))
    sep = pick(rng, ["\n", "\n", " ", "\n\n"])
    text = sep.join([task, *[p for p in parts if p]])
    if rng.random() < 0.12:
        text += pick(rng, ["\n\nSentence:", "\nInput:", "\nText:", "\n\nHere is the text:"])
    return text
