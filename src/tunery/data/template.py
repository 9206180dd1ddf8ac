"""The one seam between training and inference: an example becomes token ids here and nowhere else.

A prompt for inference is, token for token, the beginning of the same example's training row. Layouts carry
LLaMA-Factory's names; "auto" is the tokenizer's own chat template.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunery.config import nearest
from tunery.errors import ConfigError, DataError, ModelError
from tunery.types import Example, Message


@dataclass(frozen=True, slots=True)
class Layout:
    """How turns are written. Each of the four is one piece of text, tokenised on its own."""

    system: str
    user: str
    assistant: str
    stop: str
    default_system: str = ""


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
    ),
}
_PROBE = (
    Message("system", "Extract."),
    Message("user", "Zoë's 2nd order, #A-17: 3 × “Çelik” (12,5 €)\n\tby 07:30 {or} [later]?"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One training row: `prompt` and `target` token ids; the loss is on `target` alone unless told otherwise."""

    id: str
    prompt: list[int]
    target: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


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

    def prompts(self, examples: Sequence[Example]) -> list[list[int]]:
        """Token ids up to where the answer starts, one list an example."""
        pieces = [self._prompt_pieces(e.messages) for e in examples]
        flat = self._encode([p for row in pieces for p in row])
        out, at = [], 0
        for row in pieces:
            out.append([t for ids in flat[at : at + len(row)] for t in ids])
            at += len(row)
        return out

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """Training rows. Raises DataError for an example without a target."""
        missing = next((e for e in examples if e.target is None), None)
        if missing:
            raise DataError(f'example "{missing.id}" has no target to train on')
        targets = self._encode([self._target_text(e) for e in examples])
        return [Row(e.id, p, t) for e, p, t in zip(examples, self.prompts(examples), targets, strict=True)]

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of plain texts, without any layout."""
        return self._encode(list(texts))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's token ids, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip("\n")

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def _prompt_pieces(self, messages: Sequence[Message]) -> list[str]:
        layout = self._layout
        if layout is None:
            chat = [{"role": m.role, "content": m.content} for m in messages]
            return [self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)]
        turns = list(messages)
        system = turns.pop(0).content if turns and turns[0].role == "system" else layout.default_system
        pieces = [layout.system.format(system)] if system else []
        for message in turns:
            if message.role not in ("user", "assistant"):
                raise DataError(f'template "{self.name}" has no place for a "{message.role}" turn here')
            shape = layout.user if message.role == "user" else layout.assistant
            pieces.append(shape.replace("{}", message.content, 1))
        return pieces

    def _target_text(self, example: Example) -> str:
        assert example.target is not None
        if self._layout:
            return self._layout.assistant.replace("{}", example.target, 1)
        (prompt,) = self._prompt_pieces(example.messages)
        chat = [{"role": m.role, "content": m.content} for m in example.messages]
        whole = self.tokenizer.apply_chat_template(
            [*chat, {"role": "assistant", "content": example.target}], tokenize=False
        )
        if not whole.startswith(prompt):
            raise ModelError(
                "this chat template writes a prompt differently once it is answered",
                hint=f"training and inference would disagree; choose template: {' | '.join(LAYOUTS)}",
            )
        return whole[len(prompt) :]


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
