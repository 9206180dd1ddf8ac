"""`tunery init`: a project folder with a commented tunery.yaml, and the embedded data when there is no other."""

from __future__ import annotations

import re
from pathlib import Path

from tunery.config import PROJECT_FILE
from tunery.data import list_datasets, materialise_bikeshop
from tunery.errors import ConfigError, DataError
from tunery.storage import write_atomic

_YAML = """\
# One file for every stage. Training keys are LLaMA-Factory's, engine_kwargs vLLM's. `tunery COMMAND --help` explains.
model: {model}            # trained versions are registered as {model}@1, {model}@2, ...

train:
  model_name_or_path: tunery-base   # the small base that ships with Tunery; any Hugging Face folder or id works
  dataset_dir: {dataset_dir}
  dataset: {train}
{eval_line}  num_train_epochs: 1.5   # enough for a first look; 5 and more get closer to the best
  # lora_rank, learning_rate, ... : left out, they take what suits the base

eval:
  dataset: {test}

serve:
  port: 8000

# ray:
#   address: auto           # join a running Ray cluster instead of starting Ray on this machine
"""


def init(folder: Path, data: Path | None = None, model: str | None = None) -> Path:
    """Write `folder`/tunery.yaml for the datasets of `data` (a folder with dataset_info.json); returns its path.

    Without `data`, the embedded bicycle-shop data is copied to `folder`/data. Raises ConfigError when there is a
    tunery.yaml already, DataError when no training set can be told from the names in dataset_info.json.
    """
    target = folder / PROJECT_FILE
    if target.exists():
        raise ConfigError(f"{target} exists already", hint="edit it, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if data is None:
        materialise_bikeshop(folder / "data")
        dataset_dir, names = "data", list_datasets(folder / "data")
    else:
        names = list_datasets(data)
        inside = data.resolve().is_relative_to(folder.resolve())
        dataset_dir = str(data.resolve().relative_to(folder.resolve()) if inside else data.resolve())
    train = _role(names, "train", "training")
    if train is None:
        raise DataError(
            f"which dataset is for training? There are {', '.join(names)}",
            hint='name one of them "...-train" in dataset_info.json',
        )
    held_out = _role(names, "val", "valid", "validation", "dev", "eval")
    test = _role(names, "test") or held_out
    stem = train.lower().replace("training", "").replace("train", "").strip("-_. ")
    text = _YAML.format(
        model=model or stem or "extractor",
        dataset_dir=dataset_dir,
        train=train,
        eval_line=f"  eval_dataset: {held_out}\n" if held_out else "",
        test=test or "null  # a labelled dataset to score on",
    )
    write_atomic(target, text)
    return target


def _role(names: list[str], *words: str) -> str | None:
    """The first name that has one of `words` between its hyphens and underscores, by the words' order."""
    parts = {name: re.split(r"[-_. ]", name.lower()) for name in names}
    return next((name for word in words for name in names if word in parts[name]), None)
