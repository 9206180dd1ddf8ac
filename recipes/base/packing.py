"""Packs groups into sequences that share prompt prefixes: `[prefix | row | row | ...] [prefix | row ...] pad`.

Every row's positions go on from its prefix, and a row attends to its prefix and to itself.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import corpora
import generate
import numpy as np
from domain import HELD_OUT
from tokenizer import Encoder

SYSTEM = "You are a helpful assistant."
# Classes of target tokens; pretrain.py turns them into loss weights.
NONE, INSTRUCTION, INPUT, ANSWER = range(4)


@dataclass(slots=True)
class Packed:
    """Arrays of shape [sequences, length]: token ids, group number (0: padding), segment (0: prefix), position,
    and the class of each token as a prediction target."""

    ids: np.ndarray
    group: np.ndarray
    segment: np.ndarray
    position: np.ndarray
    target: np.ndarray


def prompt_parts(layout: str, instruction: str) -> tuple[str, str, str]:
    """The three texts around the specials of a prompt: an optional system turn's body, whether the user turn opens
    in the prefix, and the user turn's text before the input."""
    if layout == "system":
        return instruction, "user", ""
    return (SYSTEM if layout == "helper" else ""), "user", instruction + "\n"


def encode_group(enc: Encoder, group: generate.Group) -> tuple[list[int], list[tuple[list[int], int]]]:
    """Prefix ids, and per row its ids with the offset at which the answer starts."""
    nl = enc("\n")
    system, role, before = prompt_parts(group.layout, group.instruction)
    prefix: list[int] = []
    if system:
        prefix += [enc.start, *enc("system\n"), *enc(system), enc.end, *nl]
    prefix += [enc.start, *enc(role + "\n"), *enc(before)]
    tail = [enc.end, *nl, enc.start, *enc("assistant\n")]
    encoded = []
    for text, answer in group.rows:
        head = enc(text) + tail
        encoded.append((head + enc(answer) + [enc.end, *nl], len(head)))
    return prefix, encoded


def groups(seed: int, corpora_dir: Path | None, share: float) -> Iterator[generate.Group]:
    """Generated groups, with a share of human-written ones mixed in."""
    rng = random.Random(seed)
    while True:
        if corpora_dir is not None and rng.random() < share:
            yield corpora.make_group(rng, corpora_dir)
        else:
            yield generate.make_group(rng, False, HELD_OUT)


def pack(enc: Encoder, source: Iterator[generate.Group], sequences: int, length: int) -> Packed:
    """Fills `sequences` sequences of `length` tokens."""
    shape = (sequences, length)
    out = Packed(
        np.full(shape, enc.pad, np.int16), np.zeros(shape, np.int16), np.zeros(shape, np.int16),
        np.zeros(shape, np.int16), np.zeros(shape, np.int8),
    )  # fmt: skip
    waiting: list[tuple[list[int], list[tuple[list[int], int]]]] = []
    for i in range(sequences):
        at, number = 0, 0
        misses = 0
        while misses < 4:
            if waiting:
                prefix, encoded = waiting.pop()
            else:
                prefix, encoded = encode_group(enc, next(source))
                encoded = [e for e in encoded if len(e[0]) <= 400]
                if len(prefix) > 760 or not encoded:
                    continue
            room = length - at - len(prefix)
            take: list[tuple[list[int], int]] = []
            while encoded and len(encoded[-1][0]) <= room:
                take.append(encoded.pop())
                room -= len(take[-1][0])
            if take:
                number += 1
                n = len(prefix)
                out.ids[i, at : at + n] = prefix
                out.group[i, at : at + n] = number
                out.position[i, at : at + n] = np.arange(n)
                out.target[i, at : at + n] = INSTRUCTION
                at += n
                for segment, (ids, answer) in enumerate(take, 1):
                    k = len(ids)
                    out.ids[i, at : at + k] = ids
                    out.group[i, at : at + k] = number
                    out.segment[i, at : at + k] = segment
                    out.position[i, at : at + k] = np.arange(n, n + k)
                    out.target[i, at : at + answer] = INPUT
                    out.target[i, at + answer : at + k - 1] = ANSWER
                    at += k
            else:
                misses += 1
            if encoded:
                waiting.append((prefix, encoded))
                if len(waiting) == 1 and at > length - 150:
                    break
                if not take:
                    waiting.insert(0, waiting.pop())
            if at > length - 40:
                break
        out.target[i, 0] = NONE
    return out


def _work(queue: mp.Queue[tuple[int, Packed]], worker: int, first: int, step: int, options: dict[str, object]) -> None:
    """Produces chunks first + worker, first + worker + step, ...; each is a function of its own seed."""
    os.nice(5)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    enc = Encoder(str(options["tokenizer"]))
    folder = options["corpora"]
    chunk = first + worker
    while True:
        source = groups(
            int(str(options["seed"])) * 1_000_003 + chunk,
            folder if isinstance(folder, Path) else None,
            float(str(options["share"])),
        )
        queue.put((chunk, pack(enc, source, int(str(options["sequences"])), int(str(options["length"])))))
        chunk += step


class Pool:
    """Worker processes that keep a queue of packed chunks filled."""

    def __init__(self, workers: int, first: int, options: dict[str, object]) -> None:
        context = mp.get_context("fork")
        self.queue: mp.Queue[tuple[int, Packed]] = context.Queue(maxsize=4 * workers)
        self.processes = [
            context.Process(target=_work, args=(self.queue, i, first, workers, options), daemon=True)
            for i in range(workers)
        ]
        for process in self.processes:
            process.start()

    def get(self) -> tuple[int, Packed]:
        """The next chunk and its number."""
        return self.queue.get()

    def close(self) -> None:
        """Stops the workers."""
        for process in self.processes:
            process.kill()
