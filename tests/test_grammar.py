"""The grammars, judged by xgrammar itself, with the bundled base's tokenizer."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tunery.bases import find_base, load_tokenizer
from tunery.config import BUNDLED_BASE
from tunery.tasks import FunctionTask, infer_task, learn, task_by_name

xgrammar = pytest.importorskip("xgrammar", reason="xgrammar comes with vLLM")

EMBEDDED = Path(__file__).parents[1] / "src" / "tunery" / "data" / "bikeshop"
ORDERS = [
    {"id": i, "who": f"Name {i}", "items": [{"sku": "A", "n": 1}][: i % 2], "express": bool(i % 2), "note": None,
     "size": "sml"[i % 3]}
    for i in range(40)
]  # fmt: skip


def rows_of(path: Path) -> list[tuple[str, str]]:
    return [(row["input"], row["output"]) for row in map(json.loads, path.read_text().splitlines())]


@pytest.fixture(scope="module")
def compiler():
    tokenizer = load_tokenizer(find_base(BUNDLED_BASE))
    return xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(tokenizer))


def compiled(compiler, grammar):
    """As vLLM's xgrammar backend reads `structured_outputs`."""
    if "json" in grammar:
        return compiler.compile_json_schema(json.dumps(grammar["json"]), any_whitespace=True)
    if "choice" in grammar:
        return compiler.compile_grammar("root ::= " + " | ".join(json.dumps(c) for c in grammar["choice"]))
    return compiler.compile_grammar(grammar["grammar"])


def accepts(grammar, text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(grammar, terminate_without_stop_token=True)
    return matcher.accept_string(text) and matcher.is_terminated()


def generated(grammar, rng: random.Random, limit: int = 160) -> str | None:
    """What a model of random logits would write; None when it came to no end."""
    info = grammar.tokenizer_info
    matcher = xgrammar.GrammarMatcher(grammar)
    mask = xgrammar.allocate_token_bitmask(1, info.vocab_size)
    words = info.decoded_vocab
    text = b""
    for _ in range(limit):
        matcher.fill_next_token_bitmask(mask)
        bits = mask[0].tolist()
        allowed = [t for t in range(info.vocab_size) if bits[t // 32] >> (t % 32) & 1]
        stops = [t for t in allowed if t in info.stop_token_ids]
        closing = [t for t in allowed if words[t] in (b"]", b")", b"}", b'"', b"])")]
        pick = rng.choice(stops) if stops else rng.choice(closing if closing and rng.random() < 0.5 else allowed)
        if pick in info.stop_token_ids:
            return text.decode()
        assert matcher.accept_token(pick)
        text += words[pick]
    return None


def check(compiler, rows, others=()):
    """Every gold output is accepted, and what comes out parses into known attributes and values."""
    task = infer_task([output for _, output in rows])
    profile = learn(task, rows)
    wanted = task.grammar(profile)
    assert wanted is not None
    grammar = compiled(compiler, wanted)
    golds = list(dict.fromkeys(output for _, output in [*rows, *others]))
    assert [output for output in golds if not accepts(grammar, output)] == []
    rng = random.Random(0)
    answers = [a for _ in range(60) if (a := generated(grammar, rng)) is not None]
    assert len(answers) >= 20
    for answer in answers:
        structure = task.parse(answer)
        assert structure is not None, answer
        for path, value in structure.slots:
            attribute = profile.attributes[task.attribute(path)]
            number = task.name == "json" and value.removeprefix("-").isdigit()  # their type alone is constrained
            assert attribute.kind != "closed" or value in attribute.values or number, answer
    return task, grammar


def test_function_grammar_accepts_all_of_viggo(compiler, viggo):
    task, grammar = check(compiler, rows_of(viggo / "train.jsonl"), rows_of(viggo / "val.jsonl"))
    assert task.name == "function"
    good = "inform(name[A [new] game, no. 2], esrb[M (for Mature)])"
    assert accepts(grammar, good)
    for name in ("[new] game", "[[a] [b]c] d[e]", "a[]", "[][b]"):
        assert accepts(grammar, f"inform(name[{name}])"), name
    for bad in (
        "", "inform", "inform(name[a[b])", "inform(name[[a]]])", "inform(", good + " and more",
        "invent(name[x])", "inform(colour[red])", "inform(name[])",
        "inform(esrb[X (for Nobody)])", "inform(name[a]b])", "inform(name[a\nb])",
        "recommend(rating[good])", "inform(specifier[good])",
    ):  # fmt: skip
        assert not accepts(grammar, bad), bad


def test_function_grammar_accepts_all_of_the_embedded_data(compiler):
    held_out = rows_of(EMBEDDED / "val.jsonl") + rows_of(EMBEDDED / "test.jsonl")
    check(compiler, rows_of(EMBEDDED / "train.jsonl"), held_out)


def test_a_function_takes_only_its_own_attributes_once_they_are_well_known(compiler):
    rows = [("a red bike", "sell(colour[red])"), ("at noon", "meet(time[noon])"), ("bye", "bye()")] * 5
    _, grammar = check(compiler, rows)
    assert accepts(grammar, "sell(colour[red])")
    for bad in ("sell(time[noon])", "meet(colour[red])", "bye(time[noon])"):
        assert not accepts(grammar, bad), bad
    few = [*rows, ("red, small", "sell(size[small])")]  # a rare one: there may be more of them
    _, grammar = check(compiler, few)
    assert accepts(grammar, "sell(time[noon], size[small])")
    assert not accepts(grammar, "meet(colour[red])")
    profile = learn(FunctionTask(), few)
    older = replace(profile, form={"several": False, "bare": False})  # of a version trained before this was learnt
    assert accepts(compiled(compiler, FunctionTask().grammar(older)), "meet(colour[red])")


def test_several_calls_and_bare_attributes_are_accepted_where_the_rows_have_them(compiler):
    rows = [("in the north", "Request(Area, Price), Inform(Area[north])"), ("bye", "Bye()")] * 30
    _, grammar = check(compiler, rows)
    assert accepts(grammar, "Bye(), Request(Price)")


def test_json_grammar_is_a_schema_inferred_from_the_rows(compiler):
    import jsonschema

    rows = [(f"Name {order['id']}", json.dumps(order)) for order in ORDERS]
    task, grammar = check(compiler, rows)
    assert task.name == "json"
    wanted = task.grammar(learn(task, rows))
    assert wanted is not None
    schema = wanted["json"]
    for order in ORDERS:
        jsonschema.validate(order, schema)
    assert schema["properties"]["size"]["enum"] == ["s", "m", "l"]
    assert schema["properties"]["who"] == {"type": "string"}
    assert not accepts(grammar, json.dumps(ORDERS[0] | {"size": "xl"}))
    assert not accepts(grammar, json.dumps({"id": 1}))


@pytest.mark.parametrize("form", ["{}", "{}, other"])
def test_label_grammar_is_the_set_of_labels(compiler, form):
    rows = [("text", form.format(("red", 'a "quoted" one', "back\\slash")[i % 3])) for i in range(60)]
    task, grammar = check(compiler, rows)
    assert task.name == "label"
    assert not accepts(grammar, "blue")


def test_json_nested_beyond_reason_has_no_grammar_and_breaks_nothing():
    task = task_by_name("json")
    deep = "[" * 400 + "]" * 400
    profile = learn(task, [("a", deep), ("b", "[" * 100_000), ("c", '{"a": 1}')])
    assert profile.unparsed >= 1
    task.grammar(profile)


def test_free_text_and_unknown_rows_have_no_grammar():
    text, function = task_by_name("text"), task_by_name("function")
    assert text.grammar(learn(text, [("a", "b")])) is None
    assert function.grammar(learn(function, [])) is None
