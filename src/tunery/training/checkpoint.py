"""A training's state on disk: what is tuned, the optimizer, the step. The order of rows follows from seed and step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tunery.errors import TrainError
from tunery.training.tuning import load_tuned, save_tuned, tuned_state

STATE_FILE = "trainer_state.pt"


def write_checkpoint(model: Any, optimizer: torch.optim.Optimizer, step: int, scratch: Path, rank: int) -> Path:
    """`scratch`/checkpoint-`step`, filled by rank 0."""
    folder = scratch / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        save_tuned(model, folder)
        state = {
            "step": step,
            **tuned_state(model),
            "optimizer": optimizer.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }
        torch.save(state, folder / STATE_FILE)
    return folder


def read_checkpoint(folder: str, model: Any, optimizer: torch.optim.Optimizer) -> int:
    """Bring model and optimizer to where a checkpoint left them; returns its step. Raises TrainError."""
    try:
        state = torch.load(Path(folder) / STATE_FILE, weights_only=True, map_location="cpu")
        load_tuned(model, state)
        optimizer.load_state_dict(state["optimizer"])
    except (OSError, KeyError, ValueError, RuntimeError) as exc:
        raise TrainError(f'cannot resume from "{folder}": {exc}', hint="start anew with --restart") from None
    torch.set_rng_state(state["torch_rng"])
    return state["step"]
