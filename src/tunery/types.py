"""The nouns that travel between rooms. Plain frozen values; no behaviour beyond what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation up to the answer, and the answer (`target`, None when unlabelled)."""

    id: str
    messages: tuple[Message, ...]
    target: str | None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The last user turn: what the answer is about."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")


@dataclass(frozen=True, slots=True)
class Dataset:
    """Examples of one split. `fingerprint` is a sha256 over their content, independent of where they lie."""

    name: str
    uri: str
    examples: tuple[Example, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer of the engine. `error` is set, and `text` empty, when there is none.

    `cached_tokens` of the prompt came from the engine's prefix cache.
    `token_ids` and `logprobs` (natural, one a token) are None unless they were asked for.
    """

    example_id: str
    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    error: str | None = None
    token_ids: Sequence[int] | None = None
    logprobs: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """A score with a 95 % interval. `value` is None when no row could be scored."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Report:
    """What an evaluation found: metrics per model (column), what lies behind them, and the rows themselves.

    `details` holds per model: attributes, confusions, slices, spans, confidence, errors. `record` says what was
    evaluated and with what: versions, dataset, git, packages, seeds, settings.
    """

    task: str
    n: int
    metrics: Mapping[str, Mapping[str, Metric]]  # model label -> metric name -> score
    definitions: Mapping[str, str]
    samples: Sequence[Mapping[str, Any]]  # {"id", "input", "gold", "slices", "answers": {label: {"text", ...}}}
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


RunState = Literal["running", "succeeded", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class Run:
    """A view of one run folder."""

    id: str
    kind: str
    state: RunState
    path: Path
    started: str
    ended: str | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """An immutable, complete entry of the registry."""

    name: str
    version: int
    base: str  # as the user named it: a folder, a hub id, or the bundled base's name
    base_digest: str
    adapter: Path  # the version's folder, with an adapter in it or a whole model
    rank: int  # of the adapter; 0: a whole model, which needs its base no more
    template: str
    template_digest: str
    dataset_fingerprint: str
    task: str
    run_id: str
    created: str
    system: str | None = None  # the system turn and the instruction that all its training rows shared
    instruction: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""  # of its weights; empty for versions from before it was kept
    stage: str = ""  # the method it was trained by; likewise

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def whole(self) -> bool:
        """Whether it is a model of its own, tuned in full or in part, rather than an adapter."""
        return self.rank == 0

    @property
    def judges(self) -> bool:
        """Whether it is a reward model, which scores answers and writes none."""
        return self.stage == "rm"
