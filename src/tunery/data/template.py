"""The one seam between training and inference: an example becomes token ids here and nowhere else.

A prompt for inference is, token for token, the beginning of the same example's training row. Layouts carry
LLaMA-Factory's names; "auto" is the tokenizer's own chat template.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tunery.bases import Base, QuickTokenizer, load_tokenizer
from tunery.config import nearest
from tunery.errors import ConfigError, DataError, ModelError
from tunery.types import Example, Message


@dataclass(frozen=True, slots=True)
class Layout:
    """How turns are written. Prefix, system, user and assistant are pieces of text, each tokenised on its own."""

    system: str
    user: str
    assistant: str
    stop: str
    default_system: str = ""
    prefix: str = ""


_CHATML = Layout(
    system="<|im_start|>system\n{}<|im_end|>\n",
    user="<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    assistant="{}<|im_end|>\n",
    stop="<|im_end|>",
)
LAYOUTS = {
    "chatml": _CHATML,
    "qwen": Layout(
        _CHATML.system,
        _CHATML.user,
        _CHATML.assistant,
        _CHATML.stop,
        default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    ),
    "llama3": Layout(
        system="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        assistant="{}<|eot_id|>",
        stop="<|eot_id|>",
        prefix="<|begin_of_text|>",
    ),
}
_PROBE = (
    Message("system", "Extract."),
    Message("user", "Zoë's 2nd order, #A-17: 3 × “Çelik” (12,5 €)\n\tby 07:30 {or} [later]?"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One training row: `prompt` and `target` token ids, and which of the prompt's are learnt as the target's are.

    `answers` are the earlier answers of a conversation, as [start, end) in `prompt`.
    """

    id: str
    prompt: list[int]
    target: list[int]
    answers: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)

    @property
    def supervised(self) -> list[int]:
        """The positions whose tokens are learnt, each from the tokens before it; in order."""
        return [at for start, end in (*self.answers, (len(self.prompt), len(self))) for at in range(start, end)]

    def cut(self, limit: int) -> Row:
        """The row in at most `limit` tokens: the end of the prompt goes first, then the end of the target."""
        target = self.target[: limit - 1]
        prompt = self.prompt[: limit - len(target)]
        kept = ((start, min(end, len(prompt))) for start, end in self.answers if start < len(prompt))
        return Row(self.id, prompt, target, tuple(kept))


@contextmanager
def _uncollected() -> Iterator[None]:
    """While many objects are made that stay, the garbage collector would only look through them, time and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Template:
    """Renders examples with one layout and one tokenizer (a transformers fast tokenizer)."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        """Raises ConfigError for an unknown name, ModelError when the tokenizer cannot carry the layout."""
        if name != "auto" and name not in LAYOUTS:
            near = nearest(name, LAYOUTS)
            raise ConfigError(
                f'unknown template "{name}"',
                hint=f'did you mean "{near}"?' if near else f"one of: auto, {', '.join(LAYOUTS)}",
            )
        self.name = name
        self.tokenizer = tokenizer
        self._layout = LAYOUTS.get(name)
        if self._layout is None and not tokenizer.chat_template:
            raise ModelError(
                "the tokenizer has no chat template", hint=f"choose one with template: {' | '.join(LAYOUTS)}"
            )
        if self._layout and tokenizer.convert_tokens_to_ids(self._layout.stop) in (
            None,
            tokenizer.unk_token_id,
        ):
            raise ModelError(
                f'the tokenizer does not know "{self._layout.stop}", which template "{name}" ends turns with',
                hint="choose the template this model was made with, or template: auto",
            )

    @property
    def stop_ids(self) -> list[int]:
        """Token ids that end an answer."""
        if self._layout:
            return [self.tokenizer.convert_tokens_to_ids(self._layout.stop)]
        return [self.tokenizer.eos_token_id]

    @property
    def digest(self) -> str:
        """Identity of what this template does to text, not of how it is named: sha256 over a rendered probe."""
        example = Example("probe", _PROBE, "give(name[Zoë], n[3])")
        row = self.rows([example])[0]
        bare = self.prompts([Example("bare", _PROBE[1:], None)])[0]
        content = json.dumps([row.prompt, row.target, bare, len(self.tokenizer)])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def chat_template(self) -> str:
        """What this template writes, as a chat template in Jinja for a tokenizer."""
        layout = self._layout
        if layout is None:
            return self.tokenizer.chat_template
        (before, after), end = layout.user.split("{}"), layout.assistant.removeprefix("{}")
        turns = {
            "system": layout.system.split("{}"),
            "user": (before, end),
            "assistant": (opening := after.removeprefix(end), end),
        }
        write = "".join(
            f"{{% {'elif' if i else 'if'} m['role'] == '{role}' %}}"
            f"{{{{ {json.dumps(left)} + m['content'] + {json.dumps(right)} }}}}"
            for i, (role, (left, right)) in enumerate(turns.items())
        )
        system = layout.system.format(layout.default_system) if layout.default_system else ""
        return (
            f"{{{{ {json.dumps(layout.prefix)} }}}}"
            f"{{% if not messages or messages[0]['role'] != 'system' %}}{{{{ {json.dumps(system)} }}}}{{% endif %}}"
            f"{{% for m in messages %}}{write}{{% endif %}}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ {json.dumps(opening)} }}}}{{% endif %}}"
        )

    def prompts(self, examples: Sequence[Example]) -> list[list[int]]:
        """Token ids up to where the answer starts, one list an example."""
        return [ids for ids, _ in self._prompts(examples)]

    @_uncollected()
    def rows(self, examples: Sequence[Example], *, mask_history: bool = False) -> list[Row]:
        """Training rows. All answers of a conversation are learnt; with `mask_history` the last alone.

        Raises DataError for an example without a target, ModelError for a chat template that training and inference
        would not write alike.
        """
        missing = next((e for e in examples if e.target is None), None)
        if missing:
            raise DataError(f'example "{missing.id}" has no target to train on')
        targets = self._encode([self._target_text(e) for e in examples])
        rows = []
        for example, (prompt, answers), target in zip(examples, self._prompts(examples), targets, strict=True):
            earlier = 0 if mask_history else sum(m.role == "assistant" for m in example.messages)
            if earlier > len(answers):
                raise ModelError(
                    "this chat template writes an answer differently once the conversation goes on "
                    f'(example "{example.id}"), so that earlier answers cannot be learnt',
                    hint=f"learn the last alone with mask_history: true, or choose template: {' | '.join(LAYOUTS)}",
                )
            rows.append(Row(example.id, prompt, target, tuple(answers) if earlier else ()))
        return rows

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of plain texts, without any layout."""
        return self._encode(list(texts))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's token ids, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip("\n")

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def _prompts(self, examples: Sequence[Example]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Token ids of each prompt, and where in them its earlier answers lie."""
        pieces = [self._pieces(e.messages) for e in examples]
        flat = iter(self._encode([text for row in pieces for text, _ in row]))
        out = []
        for row in pieces:
            ids: list[int] = []
            answers: list[tuple[int, int]] = []
            for _, is_answer in row:
                start = len(ids)
                ids += next(flat)
                if is_answer:
                    answers.append((start, len(ids)))
            out.append((ids, answers))
        return out

    def _pieces(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """The texts of a prompt that are tokenised one by one, and whether each is an answer."""
        layout = self._layout
        if layout is None:
            return self._chat_pieces(messages)
        turns = list(messages)
        system = turns.pop(0).content if turns and turns[0].role == "system" else ""
        system = system or layout.default_system
        pieces = [(layout.prefix, False)] if layout.prefix else []
        if system:
            pieces.append((layout.system.replace("{}", system, 1), False))
        for message in turns:
            if message.role not in ("user", "assistant"):
                raise DataError(f'template "{self.name}" has no place for a "{message.role}" turn here')
            shape = layout.user if message.role == "user" else layout.assistant
            pieces.append((shape.replace("{}", message.content, 1), message.role == "assistant"))
        return pieces

    def _chat_pieces(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """The same through the tokenizer's own chat template.

        One piece when that writes an answer differently once the conversation goes on: its place is not known then.
        """
        whole = self._chat(messages)
        pieces: list[tuple[str, bool]] = []
        at = 0
        for i, message in enumerate(messages):
            if message.role != "assistant":
                continue
            start, end = self._chat(messages[:i]), self._chat(messages[: i + 1], answered=True)
            if not (whole.startswith(end) and end.startswith(start)):
                return [(whole, False)]
            pieces += [(whole[at : len(start)], False), (whole[len(start) : len(end)], True)]
            at = len(end)
        return [*pieces, (whole[at:], False)]

    def _chat(self, messages: Sequence[Message], *, answered: bool = False) -> str:
        from jinja2 import TemplateError

        chat = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return self.tokenizer.apply_chat_template(chat, add_generation_prompt=not answered, tokenize=False)
        except TemplateError as exc:
            raise ModelError(
                f"the base's chat template does not take these turns: {exc}",
                hint=f"leave out what it does not take, or choose template: {' | '.join(LAYOUTS)}",
            ) from None

    def _target_text(self, example: Example) -> str:
        assert example.target is not None
        if self._layout:
            return self._layout.assistant.replace("{}", example.target, 1)
        prompt = self._chat(example.messages)
        whole = self._chat([*example.messages, Message("assistant", example.target)], answered=True)
        if not whole.startswith(prompt):
            raise ModelError(
                "this chat template writes a prompt differently once it is answered",
                hint=f"training and inference would disagree; choose template: {' | '.join(LAYOUTS)}",
            )
        return whole[len(prompt) :]


@functools.lru_cache(maxsize=4)
def quick_template(base: Base, name: str, trust_remote_code: bool = False) -> Template:
    """The template `name` for `base`, without transformers where the layout is a named one; kept in the process."""
    quick = name != "auto" and (base.path / "tokenizer.json").exists()
    return Template(name, QuickTokenizer(base) if quick else load_tokenizer(base, trust_remote_code=trust_remote_code))


def prompt_samples(examples: Sequence[Example], rows: Sequence[Row], most: int = 4) -> list[dict[str, Any]]:
    """Some training prompts, from the shortest to the longest: {"messages", "prompt_token_ids"}, as JSON values."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt))
    picked = dict.fromkeys(order[i * (len(order) - 1) // (most - 1)] for i in range(most)) if order else ()
    return [
        {
            "messages": [{"role": m.role, "content": m.content} for m in examples[i].messages],
            "prompt_token_ids": rows[i].prompt,
        }
        for i in picked
    ]


def check_prompts(samples: Sequence[Mapping[str, Any]], template: Template, name: str) -> None:
    """Raises ModelError where `template` writes one of `prompt_samples` otherwise than the training of `name` did.

    The one check of eval, batch and serve, each with the very template and tokenizer it is about to write prompts with.
    """
    messages = [tuple(Message(m["role"], m["content"]) for m in s["messages"]) for s in samples]
    written = template.prompts([Example(str(i), turns, None) for i, turns in enumerate(messages)])
    for sample, now in zip(samples, written, strict=True):
        then = sample["prompt_token_ids"]
        if now == then:
            continue
        pairs = enumerate(zip(then, now, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(then), len(now)))
        before, after = (template.tokenizer.decode(ids[at : at + 8]) for ids in (then, now))
        raise ModelError(
            f'{name}: template "{template.name}" does not write the prompts it was trained on: from token {at} on '
            f"{after!r}, in training {before!r}",
            hint=f"its answers would be worse, and nothing would say so; train it again with template: {template.name}",
        )


def common_turns(examples: Sequence[Example]) -> tuple[str | None, str | None]:
    """The system turn and the instruction that all `examples` share, None where they do not.

    The instruction is the common beginning of their first user turns, up to its last line break.
    """
    systems = {e.messages[0].content if e.messages[0].role == "system" else None for e in examples}
    users = [next((m.content for m in e.messages if m.role == "user"), "") for e in examples]
    first, last = min(users, default=""), max(users, default="")
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    instruction, newline, _ = first[:same].rpartition("\n")
    return systems.pop() if len(systems) == 1 else None, instruction if newline and len(set(users)) > 1 else None


def query_at(example: Example) -> int | None:
    """Where an Alpaca row's input begins in its user turn, after instruction and line break; None without both."""
    at = example.meta.get("query_at")
    text = example.messages[-1].content
    fits = isinstance(at, int) and 1 < at < len(text) and text[at - 1] == "\n"  # a row may have such a column itself
    return at if fits else None


def inputs(examples: Sequence[Example]) -> list[str]:
    """The text of each example that its answer is about: its input, without the instruction before it."""
    _, instruction = common_turns(examples)
    out = []
    for example in examples:
        at = query_at(example)
        if at is None and instruction is not None and example.text.startswith(f"{instruction}\n"):
            at = len(instruction) + 1
        out.append(example.text[at or 0 :])
    return out
