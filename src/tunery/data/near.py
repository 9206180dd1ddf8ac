"""Texts that are nearly the same, found without comparing all with all: MinHash over character shingles, banded.

Broder 1997 for MinHash (the share of equal minima estimates the Jaccard similarity of two shingle sets), Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3, for bands. Candidates are then compared exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHINGLE = 5  # characters
_BANDS, _ROWS = 16, 4  # similarity .8 becomes a candidate with probability .9997, .5 with .64, .3 with .12
_PER_BUCKET = 64  # texts of one bucket that a text is compared with: identical ones fill buckets
_CHUNK = 1 << 22  # shingles hashed at once


class Shingled:
    """The shingle sets of texts. Case and white space do not count."""

    def __init__(self, texts: Sequence[str]) -> None:
        folded = [" ".join(text.split()).casefold().ljust(SHINGLE, "\0") for text in texts]
        codes = np.frombuffer("".join(folded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        lengths = np.array([len(text) for text in folded], dtype=np.int64)
        begins = np.cumsum(lengths) - lengths
        windows = lengths - SHINGLE + 1
        self.ends = np.cumsum(windows)
        # The place of every window: all places but the last four of each text.
        places = np.arange(windows.sum()) + np.repeat(begins - (self.ends - windows), windows)
        hashes = np.zeros(len(places), dtype=np.uint64)
        for i in range(SHINGLE):
            hashes = _mix(hashes ^ codes[places + i])
        self.hashes = hashes

    def __len__(self) -> int:
        return len(self.ends)

    def of(self, i: int) -> set[int]:
        """The shingles of text `i`."""
        return set(self.hashes[self.ends[i - 1] if i else 0 : self.ends[i]].tolist())

    def bands(self) -> np.ndarray:
        """(n, bands): texts that agree in one band, so in four minima in a row, are candidates."""
        rng = np.random.default_rng(0)
        factors = rng.integers(1, 2**63, _BANDS * _ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        out = np.empty((len(self), _BANDS), dtype=np.uint64)
        begins = np.concatenate(([0], self.ends[:-1]))
        at = 0
        while at < len(self):
            stop = max(at + 1, int(np.searchsorted(self.ends, begins[at] + _CHUNK)))
            hashes = self.hashes[begins[at] : self.ends[stop - 1]]
            starts = begins[at:stop] - begins[at]
            for band in range(_BANDS):
                key = np.zeros(stop - at, dtype=np.uint64)
                for factor in factors[band * _ROWS : (band + 1) * _ROWS]:
                    minima = np.minimum.reduceat((hashes * factor) >> np.uint64(24), starts)
                    key = _mix(key ^ minima)
                out[at:stop, band] = key
            at = stop
        return out


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele, Lea, Flood 2014): every bit comes to depend on every other."""
    values = (values + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def nearest_of(known: Shingled, asked: Shingled, threshold: float = 0.8) -> list[tuple[int, int, float]]:
    """For each text of `asked` that has one, its most similar text of `known` at Jaccard >= `threshold`.

    (index in known, index in asked, similarity), in the order of `asked`.
    """
    if not len(known) or not len(asked):
        return []
    known_bands, asked_bands = known.bands(), asked.bands()
    candidates: dict[int, set[int]] = {}
    for band in range(_BANDS):
        order = np.argsort(known_bands[:, band], kind="stable")
        keys = known_bands[order, band]
        low = np.searchsorted(keys, asked_bands[:, band], "left")
        high = np.searchsorted(keys, asked_bands[:, band], "right")
        for j in np.flatnonzero(high > low).tolist():
            candidates.setdefault(j, set()).update(order[low[j] : min(high[j], low[j] + _PER_BUCKET)].tolist())
    sets: dict[int, set[int]] = {}
    found = []
    for j in sorted(candidates):
        mine = asked.of(j)
        best, which = 0.0, -1
        for i in candidates[j]:
            other = sets.get(i)
            if other is None:
                other = sets[i] = known.of(i)
            small, large = sorted((len(mine), len(other)))
            if small < max(best, threshold) * large:
                continue  # sizes alone rule it out
            common = len(mine & other)
            similarity = common / (len(mine) + len(other) - common)
            if similarity > best:
                best, which = similarity, i
        if best >= threshold:
            found.append((which, j, best))
    return found
