"""What all sections are, and the engine that several of them have."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Spec(BaseModel):
    """Base of all sections: unknown keys are errors, values are checked on assignment."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())


class EngineSpec(Spec):
    """How the vLLM engine is set up. `engine_kwargs` are vLLM's engine arguments by their own names."""

    engine_kwargs: dict[str, Any] = Field(default_factory=dict)
    concurrency: int = Field(default=1, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    accelerator_type: str | None = None
