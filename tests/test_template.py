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
