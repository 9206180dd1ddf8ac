"""The layouts of a row: Alpaca columns, or a list of chat messages (ShareGPT's and OpenAI's keys)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tunery import storage
from tunery.data.files import json_type
from tunery.data.registry import ALPACA_COLUMNS, REGISTRY, TAGS, Entry, nearest
from tunery.errors import DataError
from tunery.types import Message, Role

# (messages up to the answer, the answer, what else of the row's own columns has a meaning here)
Turns = tuple[tuple[Message, ...], str | None, dict[str, Any]]
Located = tuple[str, int, dict[str, Any]]  # (file as errors name it, line, columns)


def converter(entry: Entry, labelled: bool) -> Callable[[dict[str, Any]], Turns]:
    """The function that turns one row into messages and answer. It raises DataError without a place."""
    convert = _alpaca(entry, labelled) if entry.formatting == "alpaca" else _chat(entry, labelled)
    column = entry.columns.get("kto_tag")
    if column is None:
        return convert

    def tagged(row: dict[str, Any]) -> Turns:
        messages, target, extra = convert(row)
        tag = _TRUTHS.get(str(row.get(column)).lower())
        if tag is None:
            hint = f"true for an answer to imitate, false for one to avoid; columns.kto_tag in {REGISTRY} names it"
            raise DataError(f'field "{column}" is neither true nor false', hint=hint)
        return messages, target, {**extra, "kto_tag": tag}

    return tagged


_TRUTHS = {"true": True, "1": True, "false": False, "0": False}  # a CSV has them as text


def check_columns(entry: Entry, rows: Sequence[Located], labelled: bool) -> None:
    """Raise DataError for what is wrong with the mapping itself, before any row is."""
    columns = entry.columns
    if entry.formatting == "alpaca":
        if "prompt" not in columns and "query" not in columns:
            raise DataError(f'dataset "{entry.name}": columns names neither prompt nor query', where=REGISTRY)
        if labelled and not entry.ranking and "response" not in columns:
            hint = "add columns.response: the column that holds the answer"
            raise DataError(f'dataset "{entry.name}": columns has no response', where=REGISTRY, hint=hint)
    if entry.mapped:
        for key in ("query", "history", "system", "tools"):
            column = columns.get(key)
            if column and not any(column in row for _, _, row in rows):
                label, line, row = rows[0]
                raise _missing(column, key, row, f"{label}:{line}")


def _missing(column: str, key: str, row: dict[str, Any], where: str | None = None) -> DataError:
    there = ", ".join(row) or "none"
    return DataError(
        f'missing field "{column}"',
        where=where,
        hint=f"map it with columns.{key} in {REGISTRY}; the columns there are: {there}",
    )


def _text(row: dict[str, Any], column: str | None, key: str) -> str:
    """A text cell; null and a column that is not read are empty text."""
    value = row.get(column) if column else None
    if value is None:
        return ""
    if not isinstance(value, str):
        hint = f"write it as text, or map another column with columns.{key}"
        raise DataError(f'field "{column}" is {json_type(value)}, not text', hint=hint)
    return _clean(value, column)


def _clean(value: str, column: str | None) -> str:
    if "\0" in value:
        raise DataError(f'NUL character in field "{column}"', hint="remove it: tokenizers and databases stop there")
    return value


def _answer(target: str, column: str, labelled: bool) -> str | None:
    if target.strip():
        return target
    if labelled:
        raise DataError(f'empty target: field "{column}" holds no text', hint="drop the row or write its answer")
    return None


def _alpaca(entry: Entry, labelled: bool) -> Callable[[dict[str, Any]], Turns]:
    columns = entry.columns
    prompt, query = columns.get("prompt"), columns.get("query")
    answer = "chosen" if entry.ranking else "response"
    response, rejected = columns.get(answer), columns.get("rejected") if entry.ranking else None
    system, history = columns.get("system"), columns.get("history")

    def convert(row: dict[str, Any]) -> Turns:
        if prompt and prompt not in row:
            raise _missing(prompt, "prompt", row)
        for column, key in ((response, answer), (rejected, "rejected")):
            if labelled and column and column not in row:
                raise _missing(column, key, row)
        # An empty part is left out together with its line end.
        instruction, text = _text(row, prompt, "prompt"), _text(row, query, "query")
        user = f"{instruction}\n{text}" if instruction and text else instruction or text
        if not user.strip():
            raise DataError(f"empty prompt: no text in {' or '.join(filter(None, (prompt, query)))}")
        messages = [Message("system", first)] if (first := _text(row, system, "system")) else []
        if history and row.get(history):
            messages += _history(row[history], history)
        messages.append(Message("user", user))
        target = _answer(_text(row, response, answer), response, labelled) if response else None
        extra: dict[str, Any] = {"query_at": len(instruction) + 1} if instruction and text else {}
        if rejected:
            extra["rejected"] = _answer(_text(row, rejected, "rejected"), rejected, labelled)
        return tuple(messages), target, extra

    return convert


def _history(value: Any, column: str) -> list[Message]:
    messages: list[Message] = []
    for pair in value if isinstance(value, list) else [value]:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(t, str) for t in pair)):
            raise DataError(f'field "{column}" must be a list of [question, answer] pairs of text')
        messages += [Message("user", _clean(pair[0], column)), Message("assistant", _clean(pair[1], column))]
    return messages


# What may follow what; None is the start. A tool may follow a tool only where OpenAI's layout says so.
_NEXT: dict[Role | None, tuple[Role, ...]] = {
    None: ("user",),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant",),
}


def _chat(entry: Entry, labelled: bool) -> Callable[[dict[str, Any]], Turns]:
    column, system = entry.columns["messages"], entry.columns.get("system")
    tags = entry.tags
    role_tag, content_tag = tags["role_tag"], tags["content_tag"]
    roles: dict[str, Role] = {
        tags["function_tag"]: "assistant",
        tags["observation_tag"]: "tool",
        tags["user_tag"]: "user",
        tags["assistant_tag"]: "assistant",
        tags["system_tag"]: "system",
    }
    follows = {**_NEXT, "tool": ("assistant", "tool")} if entry.formatting == "openai" else _NEXT

    def answer(row: dict[str, Any], key: str) -> str | None:
        """The content of one answer of a pair, which is a message of its own."""
        name = entry.columns[key]
        if name not in row:
            raise _missing(name, key, row)
        turn = row[name]
        if isinstance(turn, list) and len(turn) == 1:
            (turn,) = turn
        if not isinstance(turn, str):
            try:
                turn = _turn(turn, 1, role_tag, content_tag, roles).content
            except DataError as error:
                raise DataError(f'field "{name}": {error.message}', hint=error.hint) from None
        return _answer(turn, name, labelled)

    def convert(row: dict[str, Any]) -> Turns:
        if column not in row:
            raise _missing(column, "messages", row)
        turns = row[column]
        if not isinstance(turns, list) or not turns:
            raise DataError(
                f'field "{column}" must be a list of messages, not {json_type(turns) if turns else "empty"}'
            )
        messages: list[Message] = []
        last: Role | None = None
        for number, turn in enumerate(turns, 1):
            message = _turn(turn, number, role_tag, content_tag, roles)
            if message.role not in follows[last] and not (last is None and message.role == "system"):
                after = f"after {last}" if last else "first"
                expected = " or ".join(follows[last])
                raise DataError(f"message {number}: {message.role} {after}, expected {expected}")
            messages.append(message)
            last = message.role
        if messages[0].role != "system" and (first := _text(row, system, "system")):
            messages.insert(0, Message("system", first))
        if entry.ranking:
            if last not in ("user", "tool"):
                raise DataError(f"the last message is from {last}, but the answers are in columns of their own")
            return tuple(messages), answer(row, "chosen"), {"rejected": answer(row, "rejected")}
        if last == "assistant":
            return tuple(messages[:-1]), _answer(messages[-1].content, column, labelled), {}
        if labelled or last == "system":
            raise DataError(f"the last message is from {last}, so there is no answer to learn")
        return tuple(messages), None, {}

    return convert


def _turn(turn: Any, number: int, role_tag: str, content_tag: str, roles: dict[str, Role]) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"message {number} is {json_type(turn)}, not an object")
    for tag, key in ((role_tag, "role_tag"), (content_tag, "content_tag")):
        if tag not in turn and not (key == "content_tag" and turn.get("tool_calls")):
            there = ", ".join(turn) or "none"
            hint = f"map it with tags.{key} in {REGISTRY}; the keys there are: {there}"
            raise DataError(f'message {number}: missing field "{tag}"', hint=hint)
    role = roles.get(turn[role_tag]) if isinstance(turn[role_tag], str) else None
    if role is None:
        hint = nearest(str(turn[role_tag]), roles) + f" (tags in {REGISTRY} can name others)"
        raise DataError(f'message {number}: unknown role "{turn[role_tag]}"', hint=hint)
    content = turn.get(content_tag)
    if role == "assistant" and turn.get("tool_calls"):
        calls = [call.get("function", call) if isinstance(call, dict) else call for call in turn["tool_calls"]]
        content = storage.to_json(calls)
    if not isinstance(content, str):
        raise DataError(f'message {number}: field "{content_tag}" is {json_type(content)}, not text')
    return Message(role, _clean(content, content_tag))


def guess(name: str, row: dict[str, Any], label: str, labelled: bool) -> Entry:
    """The layout of an unregistered file, from its first row."""
    ranking = "chosen" in row and "rejected" in row
    extra = {key: key for key in ("system", "kto_tag") if key in row}
    if ranking:
        extra |= {"chosen": "chosen", "rejected": "rejected"}
    for column in ("messages", "conversations"):
        turns = row.get(column)
        if isinstance(turns, list):
            first = turns[0] if turns and isinstance(turns[0], dict) else {}
            openai = "role" in first or (column == "messages" and "from" not in first)
            formatting = "openai" if openai else "sharegpt"
            columns = {"messages": column, **extra}
            return Entry(name, "file_name", label, formatting, columns, TAGS[formatting], ranking=ranking)
    if "history" in row:
        extra["history"] = "history"
    columns = {key: column for key, column in ALPACA_COLUMNS.items() if column in row}
    if ranking and "prompt" in row and not columns:
        columns = {"prompt": "prompt"}  # TRL's name
    text = isinstance(row.get("text"), str) and ("output" in row or not labelled)
    if text and not columns.keys() & {"prompt", "query"}:  # plain text, or what a batch answered of a column "text"
        columns["query"] = "text"
    if "prompt" in columns or "query" in columns:
        if labelled and not ranking:
            columns["response"] = ALPACA_COLUMNS["response"]  # rows without it are reported by their line
        return Entry(name, "file_name", label, "alpaca", {**columns, **extra}, ranking=ranking)
    raise DataError(
        f"cannot tell the layout from its columns: {', '.join(row) or 'none'}",
        where=label,
        hint=f"name them instruction/input/output, messages or conversations, or register it in {REGISTRY}",
    )
