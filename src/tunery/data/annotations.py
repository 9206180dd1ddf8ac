"""Files of annotated text: CoNLL/IOB2, Label Studio, Prodigy, doccano and spaCy's DocBin, read and written.

Sources of the formats: CoNLL-2003's shared task page for columns and IOB tags; Label Studio's documented JSON of a
task (`annotations[].result[].value`); Prodigy's documented span task (`text`, `spans`, `answer`); doccano's JSONL
exports (`label` as [start, end, label], or `entities` when the project has relations); `spacy.tokens.DocBin`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tunery import storage
from tunery.data.files import MAX_LINE, OnFault, inflate, read_data, read_rows, strict, too_large
from tunery.data.spans import Annotated, Span, checked, overlap, tokens
from tunery.errors import ConfigError, DataError

Found = tuple[str, Annotated]  # (place, "ner.jsonl:41"; the annotated text)
ANNOTATIONS = ("conll", "label-studio", "prodigy", "doccano", "docbin")
_ENDINGS = {
    ".conll": "conll",
    ".conll03": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".bio": "conll",
    ".spacy": "docbin",
}


def annotation_format(path: str, row: dict[str, Any] | None = None) -> str | None:
    """Which of ANNOTATIONS a file is, by its ending, or by a row of its JSON; None when it is none of them."""
    if kind := _ENDINGS.get(Path(storage.shown(path)).suffix.lower()):
        return kind
    if row is None:
        return None
    if isinstance(row.get("data"), dict) and ("annotations" in row or "predictions" in row):
        return "label-studio"
    if not isinstance(row.get("text"), str):
        return None
    if isinstance(row.get("spans"), list):
        return "prodigy"
    labels = next((row[k] for k in ("label", "labels", "entities") if isinstance(row.get(k), list)), None)
    if labels is None or (labels and not isinstance(labels[0], list | dict)):
        return None
    return "label-studio" if labels and isinstance(labels[0], dict) and "start" in labels[0] else "doccano"


def read_annotations(path: str, kind: str, fault: OnFault = strict) -> list[Found]:
    """Annotated texts of a file. A text with a fault goes to `fault` as a whole, with its place and reason.

    Raises ConfigError for an unknown kind, DataError for a file that is none of the kind, StorageError.
    """
    if kind not in ANNOTATIONS:
        raise ConfigError(f'unknown annotation format "{kind}"', hint=f"one of: {', '.join(ANNOTATIONS)}")
    label = storage.shown(path) if storage.is_remote(path) else os.path.basename(path)
    if kind == "conll":
        return list(_read_conll(path, label, fault))
    if kind == "docbin":
        return list(_read_docbin(path, label, fault))
    convert = {"label-studio": _label_studio, "prodigy": _prodigy, "doccano": _doccano}[kind]
    found: list[Found] = []
    for line, row in read_rows(path, label, fault):
        where = f"{label}:{line}"
        try:
            found.append((where, convert(row)))
        except DataError as error:
            fault(DataError(error.message, hint=error.hint, where=where))
    return found


def write_annotations(path: Path, kind: str, rows: Iterable[tuple[str, Annotated]], fault: OnFault = strict) -> int:
    """Write (id, annotated text) pairs; returns how many. What the format cannot say goes to `fault`."""
    if kind == "docbin":
        return _write_docbin(path, rows, fault)
    pieces: list[str] = []
    for name, annotated in rows:
        try:
            pieces.append(_WRITERS[kind](name, annotated))
        except DataError as error:
            fault(DataError(error.message, hint=error.hint, where=name))
    if kind == "label-studio":
        text = "[\n" + ",\n".join(pieces) + "\n]\n"
    else:
        text = "".join(piece + "\n" for piece in pieces)
    storage.write_atomic(path, text)
    return len(pieces)


# --- JSON ------------------------------------------------------------------------------------------------


def _text_of(row: dict[str, Any]) -> str:
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise DataError('field "text" holds no text')
    if "\0" in text:
        raise DataError('NUL character in field "text"')
    return text


def _objects(value: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise DataError(f'"{what}" is not a list of objects')
    return value


def _rest(row: dict[str, Any], *used: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in used}


def _prodigy(row: dict[str, Any]) -> Annotated:
    answer = row.get("answer", "accept")
    if answer != "accept":
        raise DataError(f'its answer is "{answer}"', hint="only accepted rows are examples")
    spans = _objects(row.get("spans") or [], "spans")
    found = ((s.get("start"), s.get("end"), s.get("label"), s.get("text")) for s in spans)
    return checked(_text_of(row), found, _rest(row, "text", "spans", "tokens", "answer"))


def _doccano(row: dict[str, Any]) -> Annotated:
    used = next((key for key in ("entities", "label", "labels") if isinstance(row.get(key), list)), None)
    if used is None:
        raise DataError('no "label" or "entities"', hint="export the project as JSONL")
    found = []
    for item in row[used]:
        if isinstance(item, dict):
            found.append((item.get("start_offset"), item.get("end_offset"), item.get("label"), None))
        elif isinstance(item, list) and len(item) == 3:
            found.append((*item, None))
        else:
            raise DataError(f"a label is {json.dumps(item)[:60]}, not [start, end, label]")
    return checked(_text_of(row), found, _rest(row, "text", used))


def _label_studio(row: dict[str, Any]) -> Annotated:
    if "data" not in row:  # the JSON-MIN export
        labels = next((k for k in ("label", "labels") if isinstance(row.get(k), list)), None)
        if labels is None:
            raise DataError("it is not annotated")
        regions = [{"value": value} for value in _objects(row[labels], labels)]
        return _regions(_text_of(row), regions, _rest(row, "text", labels))
    data = row["data"]
    texts = {k: v for k, v in data.items() if isinstance(v, str)} if isinstance(data, dict) else {}
    if "text" not in texts and len(texts) != 1:
        raise DataError(f"which of data's fields is the text? {', '.join(texts) or 'none'}", hint='name it "text"')
    text = _text_of({"text": texts.get("text", next(iter(texts.values())))})
    done = [a for a in _objects(row.get("annotations") or [], "annotations") if not a.get("was_cancelled")]
    done = [a for a in done if a.get("ground_truth")] or done
    if not done:
        raise DataError("it is not annotated")
    other = {k: v for k, v in data.items() if v is not text and k != "text"}
    meta = {**({"id": row["id"]} if "id" in row else {}), **other}
    found = [_regions(text, _objects(a.get("result"), "result"), meta) for a in done]
    if any(one.spans != found[0].spans for one in found):
        hint = "mark one of them as ground truth"
        raise DataError(f"its {len(found)} annotations disagree", hint=hint)
    return found[0]


def _regions(text: str, regions: Sequence[dict[str, Any]], meta: dict[str, Any]) -> Annotated:
    spans, other = [], []
    for region in regions:
        value = region.get("value")
        labels = next((v for k, v in value.items() if k.endswith("labels")), None) if isinstance(value, dict) else None
        if not isinstance(value, dict) or not isinstance(labels, list):
            other.append(region)  # relations, choices: kept, though no span
            continue
        spans += [(value.get("start"), value.get("end"), label, value.get("text")) for label in labels]
    return checked(text, spans, meta | ({"other_results": other} if other else {}))


def _as_prodigy(name: str, a: Annotated) -> str:
    at = tokens(a)
    starts = {start: i for i, (start, _) in enumerate(at)}
    ends = {end: i for i, (_, end) in enumerate(at)}
    spans = [
        {
            "start": s.start,
            "end": s.end,
            "label": s.label,
            **(
                {"token_start": starts[s.start], "token_end": ends[s.end]}
                if s.start in starts and s.end in ends
                else {}
            ),
        }
        for s in a.spans
    ]
    listed = [
        {"text": a.text[start:end], "start": start, "end": end, "id": i, "ws": a.text[end : end + 1] == " "}
        for i, (start, end) in enumerate(at)
    ]
    row = {"text": a.text, "tokens": listed, "spans": spans, "answer": "accept"}
    return json.dumps(row | _extra(a, row), ensure_ascii=False, default=str)


def _as_doccano(name: str, a: Annotated) -> str:
    row = {"text": a.text, "label": [[s.start, s.end, s.label] for s in a.spans]}
    return json.dumps(row | _extra(a, row), ensure_ascii=False, default=str)


def _as_label_studio(name: str, a: Annotated) -> str:
    result = [
        {
            "id": f"{name}-{i}",
            "type": "labels",
            "from_name": "label",
            "to_name": "text",
            "value": {"start": s.start, "end": s.end, "text": a.text[s.start : s.end], "labels": [s.label]},
        }
        for i, s in enumerate(a.spans)
    ]
    data = {"text": a.text} | _extra(a, {"text": "", "id": ""})
    return json.dumps({"data": data, "annotations": [{"result": result}]}, ensure_ascii=False, default=str)


_INTERNAL = ("row", "file", "query_at", "spans", "tokens", "system")


def _extra(a: Annotated, row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in a.meta.items() if k not in _INTERNAL and k not in row}


# --- CoNLL -----------------------------------------------------------------------------------------------


def _read_conll(path: str, label: str, fault: OnFault) -> Iterator[Found]:
    """Sentences parted by blank lines; the first column is the token, the last its tag (IOB1, IOB2 or BILOU)."""
    lines = read_data(path, label).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    tabs = any(b"\t" in line for line in lines[:1000])
    sentence: list[tuple[str, str]] = []
    error: DataError | None = None
    first = 1
    for number, raw in enumerate([*lines, b""], 1):
        line = raw.rstrip(b"\r")
        if (
            line.strip()
            and not line.startswith(b"-DOCSTART-")
            and not (tabs and line[:1] == b"#" and b"\t" not in line)
        ):
            first = first if sentence or error else number
            try:
                sentence.append(_conll_line(line, tabs))
            except DataError as found:
                error = error or DataError(found.message, hint=found.hint, where=f"{label}:{number}")
            continue
        if line.strip() and not line.startswith(b"-DOCSTART-"):
            continue  # a comment
        if error:
            fault(error)
        elif sentence:
            text = " ".join(token for token, _ in sentence)
            spans = ((s.start, s.end, s.label, None) for s in _untag(sentence))
            yield f"{label}:{first}", checked(text, spans, {"tokens": [token for token, _ in sentence]})
        sentence, error = [], None


def _conll_line(line: bytes, tabs: bool) -> tuple[str, str]:
    if len(line) > MAX_LINE:
        raise too_large("line", len(line))
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line is not UTF-8") from error
    cells = text.split("\t") if tabs else text.split()
    if len(cells) < 2:
        raise DataError("one column, where a token and its tag are expected", hint="was the file cut short?")
    token, tag = cells[0].strip(), cells[-1].strip()
    if not token or "\0" in token:
        raise DataError("no token" if not token else "NUL byte")
    if tag not in ("O", "-", "_") and not (len(tag) > 2 and tag[0] in "BIESLU" and tag[1] == "-"):
        raise DataError(f'"{tag}" is no tag', hint="O, B-LABEL or I-LABEL in the last column")
    return token, tag


def _untag(sentence: Sequence[tuple[str, str]]) -> list[Span]:
    spans: list[Span] = []
    begun: int | None = None
    inside = ""
    at = 0
    for token, tag in [*sentence, ("", "O")]:
        kind, label = (tag[0], tag[2:]) if len(tag) > 2 else ("O", "")
        goes_on = begun is not None and kind in "IEL" and label == inside
        if begun is not None and not goes_on:
            spans.append(Span(begun, at - 1, inside))
            begun = None
        if kind != "O" and begun is None:
            begun, inside = at, label
        at += len(token) + 1
        if kind in "ELUS" and begun is not None:
            spans.append(Span(begun, at - 1, inside))
            begun = None
    return spans


def _as_conll(name: str, a: Annotated) -> str:
    if overlap(a.spans):
        raise DataError("its spans overlap, which IOB2 cannot say", hint="export to prodigy, doccano or label-studio")
    lines = []
    for start, end in tokens(a):
        span = next((s for s in a.spans if s.start <= start and end <= s.end), None)
        tag = "O" if span is None else f"{'B' if span.start == start else 'I'}-{span.label}"
        if span and (" " in span.label or "\t" in span.label):
            raise DataError(f'the label "{span.label}" has a space, which ends a column')
        lines.append(f"{a.text[start:end]}\t{tag}\n")
    if not lines:
        raise DataError("it has no tokens")
    for span in a.spans:
        if not any(start == span.start for start, _ in tokens(a)):
            raise DataError(f"the span {span.start}-{span.end} begins with white space, where no token does")
    return "".join(lines)


_WRITERS: dict[str, Callable[[str, Annotated], str]] = {
    "prodigy": _as_prodigy,
    "doccano": _as_doccano,
    "label-studio": _as_label_studio,
    "conll": _as_conll,
}


# --- spaCy -----------------------------------------------------------------------------------------------


def _spacy() -> Any:
    try:
        import spacy  # pyright: ignore[reportMissingImports]  (optional)
    except ImportError as error:
        hint = 'pip install "tunery[spacy]", or convert it to JSONL with spaCy'
        raise DataError("a DocBin is read and written by spaCy, which is not installed", hint=hint) from error
    return spacy


def _read_docbin(path: str, label: str, fault: OnFault) -> Iterator[Found]:
    spacy = _spacy()
    data = read_data(path, label)
    from spacy.tokens import DocBin  # pyright: ignore[reportMissingImports]

    vocab = spacy.blank("xx").vocab
    inflate(data, label, "DocBin")  # within the limits, which spaCy would not keep
    try:
        docs = list(DocBin().from_bytes(data).get_docs(vocab))
    except Exception as error:  # zlib, msgpack, numpy: whichever meets the damage first
        raise DataError(f"not a readable DocBin: {str(error) or type(error).__name__}", where=label) from error
    for number, doc in enumerate(docs, 1):
        where = f"{label}:{number}"
        try:
            yield (
                where,
                checked(_text_of({"text": doc.text}), [(e.start_char, e.end_char, e.label_, None) for e in doc.ents]),
            )
        except DataError as error:
            fault(DataError(error.message, hint=error.hint, where=where))


def _write_docbin(path: Path, rows: Iterable[tuple[str, Annotated]], fault: OnFault) -> int:
    spacy = _spacy()
    from spacy.tokens import Doc, DocBin  # pyright: ignore[reportMissingImports]

    vocab, box, n = spacy.blank("xx").vocab, DocBin(), 0
    for name, annotated in rows:
        if overlap(annotated.spans):
            fault(DataError("its spans overlap, which a Doc's entities cannot", where=name))
            continue
        words, spaces = _words(annotated)
        doc = Doc(vocab, words=words, spaces=spaces)
        found = (doc.char_span(s.start, s.end, label=s.label) for s in annotated.spans)
        ents = [span for span in found if span is not None]
        if doc.text != annotated.text or len(ents) < len(annotated.spans):
            fault(DataError("its spans do not lie on tokens", where=name))
            continue
        doc.ents = ents
        box.add(doc)
        n += 1
    storage.write_atomic(path, box.to_bytes())
    return n


def _words(annotated: Annotated) -> tuple[list[str], list[bool]]:
    """Words, and whether one space follows each; other white space is a word of its own, so that no text is lost."""
    text = annotated.text
    words: list[str] = []
    spaces: list[bool] = []
    at = 0
    for start, end in [*tokens(annotated), (len(text), len(text))]:
        gap = text[at:start]
        if gap.startswith(" ") and words and not spaces[-1]:
            spaces[-1], gap = True, gap[1:]
        if gap:
            words.append(gap)
            spaces.append(False)
        if end > start:
            words.append(text[start:end])
            spaces.append(False)
        at = end
    return words, spaces
