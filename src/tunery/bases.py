"""Base models: the bundled one, a Hugging Face folder, or a hub id; where it lies, who it is, its tokenizer."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from tunery.config import BUNDLED_BASE, nearest
from tunery.errors import ModelError

_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth")
_HASHED_WHOLE = 64 << 20  # bytes; beyond this a weight file is known by its size and header


@dataclass(frozen=True, slots=True)
class Base:
    """A base model on local disk. `digest` identifies its weights and tokenizer wherever it lies."""

    name: str
    path: Path
    digest: str
    context: int
    architecture: str
    config: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # config.json


def bundled_path() -> Path:
    """The folder of the base model that ships with the package."""
    return Path(__file__).parent / "assets" / "base"


def find_base(name: str, *, allow_pickle: bool = False) -> Base:
    """The base a user named. Raises ModelError when it is missing or incomplete.

    Weights that are pickled only (pytorch_model.bin) are taken with `allow_pickle`: loading them may run code.
    """
    path = bundled_path() if name == BUNDLED_BASE else Path(name).expanduser()
    if not path.is_dir():
        path = _from_hub(name, allow_pickle)
    config = _read_config(path, name)
    weights = list(path.glob("*.safetensors"))
    if not weights and any(list(path.glob(p)) for p in _PICKLES):
        if not allow_pickle:
            raise ModelError(
                f'the weights in "{path}" are pickled, and loading a pickle can run any code',
                hint="convert them with save_pretrained, or, where you trust who made them, set allow_pickle: true",
            )
        weights = list(path.glob(_PICKLES[0]))
    if not weights:
        raise ModelError(f'no *.safetensors weights in "{path}"', hint="download the whole model folder")
    architecture = (config.get("architectures") or ["unknown"])[0]
    context = int(
        config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings") or 2048
    )
    return Base(name, path, _digest(path, weights), context, architecture, config)


def load_tokenizer(base: Base, *, trust_remote_code: bool = False) -> Any:
    """The base's fast tokenizer. Raises ModelError when there is none that works."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(base.path, trust_remote_code=trust_remote_code)
    except Exception as exc:
        raise ModelError(
            f'the tokenizer of "{base.name}" does not load: {exc}',
            hint="the folder needs tokenizer.json and tokenizer_config.json",
        ) from None


def check_base(base: Base, tokenizer: Any, *, trust_remote_code: bool = False) -> None:
    """Raises ModelError for a base that cannot be trained: of another kind, or with another model's tokenizer."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        AutoConfig.from_pretrained(base.path, trust_remote_code=trust_remote_code)
    except Exception as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        hint = "where you trust the code that comes with it, set trust_remote_code: true" if remote_code(base) else None
        raise ModelError(f'transformers does not know the model in "{base.path}": {reason}', hint=hint) from None
    own = trust_remote_code and "AutoModelForCausalLM" in (base.config.get("auto_map") or {})
    known = {
        name
        for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        for name in ([names] if isinstance(names, str) else names)
    }
    if not own and base.architecture != "unknown" and base.architecture not in known:
        raise ModelError(
            f'"{base.name}" is a {base.architecture}, not a causal language model', hint="choose one that writes text"
        )
    rows = base.config.get("vocab_size") or (base.config.get("text_config") or {}).get("vocab_size")
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if rows and highest >= rows:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise ModelError(
            f'the tokenizer of "{base.name}" does not fit its model: "{token}" has id {highest:,}, '
            f"the embedding has {rows:,} rows",
            hint="use the tokenizer that the model came with, or resize the model's embedding to it",
        )


def remote_code(base: Base) -> list[str]:
    """The Python files that a base brings, to be run with `trust_remote_code`."""
    return sorted(p.name for p in base.path.glob("*.py"))


TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "merges.txt",
)  # fmt: skip


class QuickTokenizer:
    """A base's tokenizer through the tokenizers library alone: the same ids, without the seconds transformers takes.

    Enough for a Template with a named layout; "auto" needs the real one, for its chat template.
    """

    chat_template = None

    def __init__(self, base: Base) -> None:
        """Raises ModelError when the folder has no tokenizer.json that loads."""
        from tokenizers import Tokenizer

        try:
            self._core = Tokenizer.from_file(str(base.path / "tokenizer.json"))
        except Exception as exc:
            raise ModelError(f'the tokenizer of "{base.name}" does not load: {exc}') from None
        self._folder = base.path
        self._core.no_truncation()
        self._core.no_padding()
        self._words = _Words.of(self._core)

    unk_token_id = None

    def __call__(self, texts: list[str], *, add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        distinct = list(dict.fromkeys(texts))
        head = "" if add_special_tokens else self._shared_head(distinct)
        first = self._ids([head], add_special_tokens)[0] if head else []
        tails = self._ids([text[len(head) :] for text in distinct], add_special_tokens)
        found = dict(zip(distinct, tails, strict=True))
        return {"input_ids": [first + found[text] for text in texts]}

    def _ids(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        known = [self._words.ids(text) for text in texts] if self._words and not add_special_tokens else []
        rest = [i for i, ids in enumerate(known) if ids is None] if known else range(len(texts))
        if not rest:
            return [ids for ids in known if ids is not None]
        found = self._core.encode_batch_fast([texts[i] for i in rest], add_special_tokens=add_special_tokens)
        slow = dict(zip(rest, (encoding.ids for encoding in found), strict=True))
        return [slow[i] if i in slow else known[i] or [] for i in range(len(texts))]

    def _shared_head(self, texts: list[str]) -> str:
        """A beginning of all texts that can be encoded on its own, once: most rows share a long instruction.

        Words are encoded apart, so a cut between two words well before the texts part changes nothing; where a
        tokenizer is of another kind, the encodings of some of the texts show it, and there is no cut.
        """
        first, last = min(texts, default=""), max(texts, default="")  # the two that differ earliest
        pairs = enumerate(zip(first, last, strict=False))
        shared = first[: next((i for i, (a, b) in pairs if a != b), 0)]
        if len(texts) < 200 or len(shared) < 64 or self._core.pre_tokenizer is None:
            return ""
        words = self._core.pre_tokenizer.pre_tokenize_str(shared)
        head = shared[: words[-4][1][0]] if len(words) > 4 else ""
        some = texts[:: len(texts) // 50]
        alone = self._ids([head], False)[0]
        tails = self._ids([text[len(head) :] for text in some], False)
        return head if head and self._ids(some, False) == [alone + tail for tail in tails] else ""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return self._core.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return self._core.token_to_id(token)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files as they lie with the base."""
        for name in TOKENIZER_FILES:
            if (self._folder / name).exists():
                shutil.copyfile(self._folder / name, Path(folder) / name)

    def __len__(self) -> int:
        return self._core.get_vocab_size()


# Where all regular expression engines and Unicode versions agree on what is a letter, a mark or a space.
_PLAIN = re.compile(r"[\n -~\u00a1-\u024f\u2010-\u2026\u20ac]*")


def _plain(pattern: str) -> str:
    """A tokenizer's expression for Python's `re`, which knows no Unicode categories; right for plain text alone.

    Raises re.error for a property that is no category, such as a script.
    """
    letters = [c for c in map(chr, range(0x2100)) if _PLAIN.fullmatch(c)]
    in_brackets = False

    def rewritten(found: re.Match[str]) -> str:
        nonlocal in_brackets
        if found[0] in "[]":
            in_brackets = found[0] == "["
        category = found["category"]
        if category is None:
            return found[0]
        if not re.fullmatch("[A-Z][a-z]?", category):
            raise re.error(f"no category: {category}")
        members = "".join(re.escape(c) for c in letters if unicodedata.category(c).startswith(category))
        return members if in_brackets else f"[{members}]" if members else "(?!)"

    return re.sub(r"\\p\{(?P<category>\w+)\}|\\.|[\[\]]", rewritten, pattern)


class _Words(dict[str, list[int]]):
    """Ids of words, learnt as they come: BPE never joins what its pre-tokenizer splits, and most words come again.

    A text costs a split and a look-up a word, several times less than encoding it.
    """

    LIMIT = 500_000

    @classmethod
    def of(cls, core: Any) -> _Words | None:
        """For a tokenizer that splits by one expression and works on bytes (GPT-2's kind), else None."""
        content = json.loads(core.to_str())
        steps = (content["pre_tokenizer"] or {}).get("pretokenizers", [])
        if (
            content["model"]["type"] != "BPE"
            or content["model"].get("dropout")
            or (content["normalizer"] or {"type": "NFC"})["type"] != "NFC"
            or [step["type"] for step in steps] != ["Split", "ByteLevel"]
            or (steps[0]["behavior"], steps[0]["invert"]) != ("Isolated", False)
            or steps[1]["add_prefix_space"]
            or steps[1]["use_regex"]
            or any(t["lstrip"] or t["rstrip"] or t["single_word"] for t in content["added_tokens"])
        ):
            return None
        try:
            split = re.compile(_plain(steps[0]["pattern"]["Regex"]))
        except (KeyError, re.error):
            return None
        return cls(core, split.findall, [t["content"] for t in content["added_tokens"]])

    def __init__(self, core: Any, split: Any, added: list[str]) -> None:
        super().__init__()
        self._core, self._split = core, split
        either = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))
        self._added = re.compile(f"({either})" if added else "(?!)()")
        self.update({token: [core.token_to_id(token)] for token in added})

    def __missing__(self, word: str) -> list[int]:
        ids = self._core.encode(word, add_special_tokens=False).ids
        if len(self) < self.LIMIT:
            self[word] = ids
        return ids

    def ids(self, text: str) -> list[int] | None:
        """The ids of `text`, or None when it holds what the split may be unsure of."""
        if not _PLAIN.fullmatch(text):
            return None
        words: list[str] = []
        for at, part in enumerate(self._added.split(text)):
            words += [part] if at % 2 else self._split(part)
        whole = sum(map(len, words)) == len(text)
        return list(chain.from_iterable(map(self.__getitem__, words))) if whole else None


def _from_hub(name: str, allow_pickle: bool) -> Path:
    looks_like_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if not looks_like_id:
        near = nearest(name, [BUNDLED_BASE])
        raise ModelError(
            f'no such base model: "{name}"',
            hint=f'did you mean "{near}"?'
            if near
            else f'give a folder, a hub id like "org/model", or "{BUNDLED_BASE}"',
        )
    from huggingface_hub import snapshot_download

    unwanted = ["*.pt", "*.pth", "*.gguf", "*.onnx"]
    try:
        path = Path(snapshot_download(name, ignore_patterns=["*.bin", *unwanted]))
        if allow_pickle and not list(path.glob("*.safetensors")):
            path = Path(snapshot_download(name, ignore_patterns=unwanted))
        return path
    except Exception as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise ModelError(
            f'cannot fetch base model "{name}": {reason}',
            hint="check the name, the network and HF_TOKEN; or download the folder and give its path",
        ) from None


def _read_config(path: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text())
    except FileNotFoundError:
        raise ModelError(f'"{name}" is not a model folder: it has no config.json') from None
    except ValueError as exc:
        raise ModelError(f"config.json is damaged: {exc}", where=str(path / "config.json")) from None
    return config


def _digest(path: Path, weights: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted([path / "config.json", path / "tokenizer.json", *weights]):
        if not file.exists():
            continue
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as handle:
            digest.update(handle.read() if size <= _HASHED_WHOLE else handle.read(1 << 20))
    return digest.hexdigest()[:16]
