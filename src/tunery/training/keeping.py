"""What is kept of a tuned model: its state to go on from, and the adapter or model that others read."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tunery.training.sharding import collected, is_sharded, like
from tunery.versions import VALUE_HEAD


def tuned_state(model: Any, weights: Mapping[str, Tensor] | None = None) -> dict[str, dict[str, Tensor]]:
    """What `load_tuned` needs to go on exactly from here: every tuned parameter in fp32.

    Of a sharded model they are taken from `weights`, which are those of `weights_to_save`.
    """
    tuned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    state = {"tuned": {name: weights[name] if weights else p.detach() for name, p in tuned.items()}}
    return state | ({"pissa": model.pissa_start} if hasattr(model, "pissa_start") else {})


@torch.no_grad()
def load_tuned(model: Any, state: dict[str, dict[str, Tensor]]) -> None:
    """The opposite of `tuned_state`. Raises ValueError when `state` is of a model tuned in another way."""
    tuned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if tuned.keys() != state["tuned"].keys():
        raise ValueError("other parameters are tuned in it")
    if "pissa" in state:
        _restart(model, state["pissa"])
    for name, parameter in tuned.items():
        parameter.copy_(like(state["tuned"][name], parameter))


def _restart(model: Any, start: dict[str, Tensor]) -> None:
    """Let PiSSA have started from `start`: another machine's decomposition may differ, by a sign or by rounding."""
    for name, module in model.named_modules():
        a, b = f"{name}.lora_A.default.weight", f"{name}.lora_B.default.weight"
        if a not in start or (start[a].equal(model.pissa_start[a]) and start[b].equal(model.pissa_start[b])):
            continue
        weight, scale = module.base_layer.weight, module.scaling["default"]
        moved = model.pissa_start[b] @ model.pissa_start[a] - start[b] @ start[a]
        weight.add_((moved * scale).to(weight.device, weight.dtype))
    model.pissa_start = start


def weights_to_save(model: Any) -> dict[str, Tensor] | None:
    """The whole weights that `save_tuned` writes of a sharded model, on rank 0; all workers have to call it.

    None for a model that is not sharded.
    """
    if not is_sharded(model):
        return None
    if hasattr(model, "untuned"):
        return collected(model.state_dict(keep_vars=True))
    named = model.named_parameters(remove_duplicate=False)  # PEFT looks for each of two tied modules
    return collected({name: p for name, p in named if p.requires_grad})


def save_tuned(model: Any, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write what was tuned as others read it: PEFT's adapter, or a whole model with the base's own dtypes; the value
    head, where there is one, as LLaMA-Factory has it.

    `weights` are those of `weights_to_save`, in place of the model's own.
    """
    if hasattr(model, "untuned"):
        _save_whole(model, folder, weights or model.state_dict())
    elif hasattr(model, "pissa_start"):
        _save_converted(model, folder)
    else:
        model.save_pretrained(folder, state_dict=weights)
    if hasattr(model, "v_head"):
        head = {name: p.detach().cpu().contiguous() for name, p in model.v_head.named_parameters(prefix="v_head")}
        save_file(head, folder / VALUE_HEAD, metadata={"format": "pt"})


def _save_whole(model: Any, folder: Path, weights: Mapping[str, Tensor]) -> None:
    config, dtypes = model.untuned
    cast: dict[int, Tensor] = {}  # tied weights are one tensor, and stay one
    for name, dtype in dtypes.items():
        cast[weights[name].data_ptr()] = weights[name].detach().to(dtype)
    own = {n: cast.get(v.data_ptr(), v) for n, v in weights.items() if not n.startswith("v_head.")}
    model.save_pretrained(folder, state_dict=own)
    config.save_pretrained(folder)


def _save_converted(model: Any, folder: Path) -> None:
    from peft import get_peft_model_state_dict

    config = copy.deepcopy(model.peft_config["default"])
    config.lora_alpha *= 2**0.5 if config.use_rslora else 2
    config.r, config.init_lora_weights, config.inference_mode = 2 * config.r, True, True
    start = {name.replace(".default.", "."): weight for name, weight in model.pissa_start.items()}
    state = {name: weight.detach().cpu().contiguous() for name, weight in get_peft_model_state_dict(model).items()}
    for name, weight in start.items():
        down = ".lora_A." in name
        state[name] = torch.cat([state[name].float(), weight if down else -weight], 0 if down else 1)
    config.save_pretrained(str(folder))
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
