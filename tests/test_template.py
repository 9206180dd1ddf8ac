"""The seam: a prompt for inference is the beginning of the training row, token for token."""

import pytest

from tunery.bases import find_base, load_tokenizer
from tunery.data.template import Template, check_prompts, common_turns, prompt_samples
from tunery.errors import ConfigError, DataError, ModelError
from tunery.types import Example, Message

QWEN = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nDo it.\nred box<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return load_tokenizer(find_base(str(tiny_base)))


def example(text="Do it.\nred box", target: str | None = "f(colour[red])", *before: Message) -> Example:
    return Example("x", (*before, Message("user", text)), target)


@pytest.mark.parametrize("name", ["chatml", "qwen", "auto"])
def test_prompt_is_the_beginning_of_the_row(tokenizer, name):
    template = Template(name, tokenizer)
    history = (Message("system", "Be brief."), Message("user", "a"), Message("assistant", "f()"))
    for e in (example(), example("ünï ☃ <b>{}</b>"), example("last", "g()", *history)):
        row = template.rows([e])[0]
        assert template.prompts([e])[0] == row.prompt
        assert template.decode(row.target) == e.target
        assert row.target[-2:] == tokenizer("<|im_end|>\n", add_special_tokens=False)["input_ids"]


def test_qwen_is_llama_factorys_text(tokenizer):
    assert tokenizer.decode(Template("qwen", tokenizer).prompts([example()])[0]) == QWEN


def test_chatml_equals_the_bases_own_chat_template(tokenizer):
    system = Message("system", "Be brief.")
    for e in (
        example(),
        example("b", "f()", system),
        example("c", "f()", system, Message("user", "a"), Message("assistant", "z")),
    ):
        assert Template("chatml", tokenizer).rows([e]) == Template("auto", tokenizer).rows([e])


def test_digest_is_of_what_is_written_not_of_the_name(tokenizer):
    digests = {name: Template(name, tokenizer).digest for name in ("chatml", "qwen", "auto")}
    assert digests["chatml"] == digests["auto"] != digests["qwen"]


def test_faults(tokenizer):
    with pytest.raises(ConfigError, match="unknown template") as caught:
        Template("chatlm", tokenizer)
    assert "chatml" in (caught.value.hint or "")
    with pytest.raises(ModelError, match="does not know"):
        Template("llama3", tokenizer)
    with pytest.raises(DataError, match="no target"):
        Template("chatml", tokenizer).rows([example(target=None)])


def test_common_turns_are_found_whatever_the_format():
    rows = [example("Do it.\nred"), example("Do it.\nblue")]
    assert common_turns(rows) == (None, "Do it.")
    rows = [example(t, "x", Message("system", "S")) for t in ("red", "blue")]
    assert common_turns(rows) == ("S", None)


# --- LLaMA-Factory's tokens, derived by hand from its processor: |...| marks what is learnt ---

S, U, A, E = "<|im_start|>system\n", "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n"
QWEN_SYSTEM = f"{S}You are Qwen, created by Alibaba Cloud. You are a helpful assistant.{E}"
ALPACA = {"instruction": "Do it.", "input": "red box", "output": "f(red)"}
HISTORY = [["first", "f(1)"], ["second", "f(2)"]]
SHAREGPT = [
    {"from": "human", "value": "first"}, {"from": "gpt", "value": "f(1)"},
    {"from": "human", "value": "last"}, {"from": "gpt", "value": "f(2)"},
]  # fmt: skip


def learnt(tokenizer, row) -> str:
    """The row's text, each learnt stretch between bars."""
    ids, marks = row.prompt + row.target, set(row.supervised)
    out = ""
    for at in range(len(ids) + 1):
        if (at in marks) != (at - 1 in marks):
            out += "|"
        out += tokenizer.decode(ids[at : at + 1])
    return out


def loaded(tmp_path, row, **columns) -> Example:
    import json

    from tunery.data import load

    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    entry = {"file_name": "rows.jsonl", **columns}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"rows": entry}))
    (found,) = load("rows", tmp_path).examples
    return found


COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
WITH_SYSTEM, WITH_HISTORY = ({"columns": COLUMNS | more} for more in ({"system": "sys"}, {"history": "past"}))
CASES = {
    "single turn": (ALPACA, {}, False, f"{QWEN_SYSTEM}{U}Do it.\nred box{E}{A}|f(red){E}|"),
    "no input: its line break goes too": (
        ALPACA | {"input": ""}, {}, False, f"{QWEN_SYSTEM}{U}Do it.{E}{A}|f(red){E}|",
    ),
    "system column": (
        ALPACA | {"sys": "Be brief."}, WITH_SYSTEM, False,
        f"{S}Be brief.{E}{U}Do it.\nred box{E}{A}|f(red){E}|",
    ),
    "history column: its answers are learnt too": (
        ALPACA | {"past": HISTORY}, WITH_HISTORY, False,
        f"{QWEN_SYSTEM}{U}first{E}{A}|f(1){E}|{U}second{E}{A}|f(2){E}|{U}Do it.\nred box{E}{A}|f(red){E}|",
    ),
    "mask_history: the last answer alone": (
        ALPACA | {"past": HISTORY}, WITH_HISTORY, True,
        f"{QWEN_SYSTEM}{U}first{E}{A}f(1){E}{U}second{E}{A}f(2){E}{U}Do it.\nred box{E}{A}|f(red){E}|",
    ),
    "ShareGPT: every turn of the assistant": (
        {"conversations": SHAREGPT}, {"formatting": "sharegpt"}, False,
        f"{QWEN_SYSTEM}{U}first{E}{A}|f(1){E}|{U}last{E}{A}|f(2){E}|",
    ),
    "ShareGPT with a system turn, history masked": (
        {"conversations": [{"from": "system", "value": "Be brief."}, *SHAREGPT]}, {"formatting": "sharegpt"}, True,
        f"{S}Be brief.{E}{U}first{E}{A}f(1){E}{U}last{E}{A}|f(2){E}|",
    ),
    "an empty system turn is none": (
        {"conversations": [{"from": "system", "value": ""}, *SHAREGPT[2:]]}, {"formatting": "sharegpt"}, False,
        f"{QWEN_SYSTEM}{U}last{E}{A}|f(2){E}|",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_llama_factorys_tokens_and_labels(tokenizer, tmp_path, case):
    row, registry, mask_history, expected = CASES[case]
    (encoded,) = Template("qwen", tokenizer).rows([loaded(tmp_path, row, **registry)], mask_history=mask_history)
    assert learnt(tokenizer, encoded) == expected


def test_prompt_and_answer_are_tokenised_apart():
    """ "\\n" ends the prompt and begins the answer; in one text both would be a single token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({t: i for i, t in enumerate([*specials, *letters, "ĊĊ"])}, [("Ċ", "Ċ")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(specials)
    merging = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=specials[2])
    (row,) = Template("chatml", merging).rows([example("a", "\nb")])
    newline = merging.convert_tokens_to_ids("Ċ")
    assert row.prompt[-1] == row.target[0] == newline
    history = example("b", "c", Message("user", "a"), Message("assistant", "\nb"))
    (row,) = Template("chatml", merging).rows([history])
    ((start, _),) = row.answers
    assert row.prompt[start - 1] == row.prompt[start] == newline


def test_a_row_is_cut_with_what_is_learnt_of_it(tokenizer):
    before = (Message("user", "a"), Message("assistant", "f(1)"))
    (row,) = Template("chatml", tokenizer).rows([example("b", "f(2)", *before)])
    ((start, end),) = row.answers
    cut = row.cut(end - 2 + len(row.target))
    assert len(cut) == end - 2 + len(row.target)
    assert cut.answers == ((start, end - 2),)
    assert cut.target == row.target
    assert row.cut(start + len(row.target)).answers == ()


def test_a_chat_template_that_rewrites_earlier_answers_needs_mask_history(tiny_base):
    tokenizer = load_tokenizer(find_base(str(tiny_base)))
    tokenizer.chat_template = (  # as reasoning models have it: the last answer alone keeps its thoughts
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = Template("auto", tokenizer)
    history = example("b", "f(2)", Message("user", "a"), Message("assistant", "f(1)"))
    with pytest.raises(ModelError, match="once the conversation goes on") as caught:
        template.rows([history])
    assert "mask_history" in (caught.value.hint or "")
    (row,) = template.rows([history], mask_history=True)
    assert learnt(tokenizer, row) == f"{U}a{E}{A}f(1){E}{U}b{E}{A}|<think></think>f(2){E}|"


def test_a_chat_template_that_refuses_a_turn_is_told(tiny_base):
    tokenizer = load_tokenizer(find_base(str(tiny_base)))
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(ModelError, match="System role not supported"):
        Template("auto", tokenizer).prompts([example()])


@pytest.mark.parametrize("name", ["chatml", "qwen"])
def test_the_chat_template_of_a_layout_writes_what_the_layout_writes(tokenizer, name):
    template = Template(name, tokenizer)
    before = (Message("user", "a {{ 1 }}"), Message("assistant", "z"))
    for e in (example(), example("b", "f", Message("system", "Be brief."), *before)):
        chat = [{"role": m.role, "content": m.content} for m in e.messages]
        written = tokenizer.apply_chat_template(
            chat, chat_template=template.chat_template, add_generation_prompt=True, tokenize=False
        )
        assert written == tokenizer.decode(template.prompts([e])[0])


def test_prompts_of_another_template_are_refused_by_the_token_where_they_part(tokenizer):
    examples = [example(f"Do it.\n{'very ' * n}red box") for n in range(9)]
    template = Template("chatml", tokenizer)
    samples = prompt_samples(examples, template.rows(examples))
    lengths = [len(s["prompt_token_ids"]) for s in samples]
    assert len(samples) == 4
    assert (lengths[0], lengths[-1]) == tuple(len(template.prompts([e])[0]) for e in (examples[0], examples[-1]))
    check_prompts(samples, template, "shop@1")
    check_prompts(samples, Template("auto", tokenizer), "shop@1")  # another name, the same prompts
    with pytest.raises(ModelError, match=r'shop@1: template "qwen" .* from token 1 on') as caught:
        check_prompts(samples, Template("qwen", tokenizer), "shop@1")
    assert "in training 'user" in caught.value.message
    assert prompt_samples([], []) == []
    assert len(prompt_samples(examples[:1], template.rows(examples[:1]))) == 1


def test_llama3_begins_as_llamas_own_template_does(tiny_base):
    own = load_tokenizer(find_base(str(tiny_base)))  # a tokenizer with Llama's signs
    own.add_special_tokens({"additional_special_tokens": [
        "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
    ]})  # fmt: skip
    text = own.decode(Template("llama3", own).prompts([example()])[0])
    assert text.startswith("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nDo it.")
    assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
