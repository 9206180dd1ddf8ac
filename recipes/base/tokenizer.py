"""The base model's tokenizer: byte-level BPE over runs of letters; every other character stands alone.

    python tokenizer.py OUT_DIR [--rows 60000]

A value is tokenised in the sentence as in the answer, because no token crosses a space, digit or bracket.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import regex
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCAB_SIZE = 4096
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
PIECES = r"[\p{L}\p{M}]+|[^\p{L}\p{M}]"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def texts(n: int, seed: int = 10_000_019) -> Iterator[str]:
    """About `n` rows' texts from the generator, with a few made-up words."""
    import generate
    import values

    rng, count = random.Random(seed), 0
    for group in generate.rows(seed):
        yield group.instruction
        for text, answer in group.rows:
            yield text
            yield answer if rng.random() < 0.3 else ""
        yield " ".join([values.cap(values.fake(rng)) for _ in range(4)])
        count += len(group.rows)
        if count >= n:
            return


def train(n: int, extra: Iterator[str] | None = None) -> Tokenizer:
    """A tokenizer trained on `n` generated rows and `extra` texts."""
    tok = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), "isolated")
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def stream() -> Iterator[str]:
        yield from texts(n)
        if extra is not None:
            yield from extra

    tok.train_from_iterator(stream(), trainer)
    return tok


def save(tok: Tokenizer, folder: Path) -> PreTrainedTokenizerFast:
    """Writes a transformers tokenizer folder with the ChatML template."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tok,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    # A name that transformers 4 and 5 and vllm know, and that leaves tokenizer.json as it is.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return fast


def special_ids(tok: Tokenizer) -> dict[str, int]:
    """The ids of the special tokens."""
    return {token: tok.get_vocab()[token] for token in (PAD, START, END)}


class Encoder:
    """Encodes text piece by piece with a cache: the same ids as the tokenizer, several times faster on short rows."""

    def __init__(self, folder: Path | str) -> None:
        self.tok = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.find = regex.compile(PIECES).findall
        self.cache: dict[str, list[int]] = {}
        self.pad, self.start, self.end = special_ids(self.tok).values()

    def __call__(self, text: str) -> list[int]:
        """Token ids of a text without special tokens."""
        cache, ids = self.cache, []
        for piece in self.find(text):
            got = cache.get(piece)
            if got is None:
                if len(cache) > 300_000:
                    cache.clear()
                got = cache[piece] = self.tok.encode(piece, add_special_tokens=False).ids
            ids += got
        return ids


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--corpora", type=Path, help="folder of *.jsonl.gz pairs to include")
    args = parser.parse_args()
    extra = None
    if args.corpora:
        import corpora

        extra = (text for text, _ in corpora.pairs(args.corpora))
    fast = save(train(args.rows, extra), args.folder)
    encode = Encoder(args.folder)
    for text in ["Ça va? <b>naïve</b>\t日本語 🎬\r\n x²  —", next(texts(1)), "The Dräx: Part IV (2019)"]:
        ids = encode(text)
        assert fast.decode(ids) == text and ids == fast.encode(text, add_special_tokens=False), text
    row = [{"role": "user", "content": "a\nb"}]
    want = "<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\n"
    assert fast.apply_chat_template(row, tokenize=False, add_generation_prompt=True) == want
    print(f"{len(fast)} tokens, round trip exact")


if __name__ == "__main__":
    main()
