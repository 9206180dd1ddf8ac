"""Base models: the bundled one, a Hugging Face folder, or a hub id; where it lies, who it is, its tokenizer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunery.config import BUNDLED_BASE, nearest
from tunery.errors import ModelError

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_HASHED_WHOLE = 64 << 20  # bytes; beyond this a weight file is known by its size and header


@dataclass(frozen=True, slots=True)
class Base:
    """A base model on local disk. `digest` identifies its weights and tokenizer wherever it lies."""

    name: str
    path: Path
    digest: str
    context: int
    architecture: str


def bundled_path() -> Path:
    """The folder of the base model that ships with the package."""
    return Path(__file__).parent / "assets" / "base"


def find_base(name: str) -> Base:
    """The base a user named. Raises ModelError when it is missing, incomplete or not a causal language model."""
    path = bundled_path() if name == BUNDLED_BASE else Path(name).expanduser()
    if not path.is_dir():
        path = _from_hub(name)
    config = _read_config(path, name)
    if not any(path.glob(w) for w in _WEIGHTS) or not list(path.glob("*.safetensors")):
        pickled = list(path.glob("*.bin")) + list(path.glob("*.pt"))
        raise ModelError(
            f'no *.safetensors weights in "{path}"',
            hint="pickled weights can run code when loaded; convert them with save_pretrained first"
            if pickled
            else "download the whole model folder",
        )
    architecture = (config.get("architectures") or ["unknown"])[0]
    context = int(
        config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings") or 2048
    )
    return Base(name, path, _digest(path), context, architecture)


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
        self._core.no_truncation()
        self._core.no_padding()

    unk_token_id = None

    def __call__(self, texts: list[str], *, add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        distinct = list(dict.fromkeys(texts))
        head = "" if add_special_tokens else self._shared_head(distinct)
        first = self._ids([head], add_special_tokens)[0] if head else []
        tails = self._ids([text[len(head) :] for text in distinct], add_special_tokens)
        found = dict(zip(distinct, tails, strict=True))
        return {"input_ids": [first + found[text] for text in texts]}

    def _ids(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        encoded = self._core.encode_batch_fast(texts, add_special_tokens=add_special_tokens)  # without offsets
        return [encoding.ids for encoding in encoded]

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

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return self._core.token_to_id(token)

    def __len__(self) -> int:
        return self._core.get_vocab_size()


def _from_hub(name: str) -> Path:
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

    try:
        return Path(snapshot_download(name, ignore_patterns=["*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx"]))
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


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted([path / "config.json", path / "tokenizer.json", *path.glob("*.safetensors")]):
        if not file.exists():
            continue
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as handle:
            digest.update(handle.read() if size <= _HASHED_WHOLE else handle.read(1 << 20))
    return digest.hexdigest()[:16]
