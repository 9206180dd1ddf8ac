"""The verb `export`: a registered version as files that need no Tunery."""

from __future__ import annotations

from pathlib import Path

from tunery.data import load
from tunery.engine.cluster import quiet
from tunery.errors import TuneryError
from tunery.exporting import Exported, Source
from tunery.exporting import export as run_export
from tunery.ops import runs
from tunery.ops.verbs import AnyProject, Observer, as_project, load_model, silent
from tunery.types import Example, Message, ModelVersion

PROMPTS = 5
_TEXTS = (  # where the version's own rows are not there any more
    "The quick brown fox jumps over the lazy dog.",
    "Please send 3 of them to Zoë in Bergen by 07:30, not later; the last ones (A-17) came too late.",
    "Is it new?",
)


def export(
    ref: str,
    out: str | Path,
    *,
    format: str = "merged",
    dtype: str | None = None,
    project: AnyProject = None,
    observer: Observer = silent,
) -> Exported:
    """Write version `ref` ("name" or "name@3") to the new folder `out` as "merged", "gguf" or "adapter".

    Before the folder appears, what was written has given the same greedy answers to a few of the version's own prompts
    as base and adapter give; where it does not, ModelError says where. Other errors: see tunery.exporting.export.
    """
    project = as_project(project)
    loaded = load_model(project, ref)
    assert loaded.version is not None
    version = loaded.version
    examples = _examples(Path(project.home), version)
    source = Source(
        name=version.ref,
        base=loaded.base,
        adapter=loaded.adapter and loaded.adapter.path,
        template=loaded.template,
        prompts=loaded.template.prompts(examples),
        trust_remote_code=project.train.trust_remote_code,
        about={
            "version": version.ref,
            "base": version.base,
            "base_digest": version.base_digest,
            "dataset_fingerprint": version.dataset_fingerprint,
            "run": version.run_id,
            "task": version.task,
            "system": version.system,
            "instruction": version.instruction,
        },
    )
    with runs.start(Path(project.home), "export", project, parents=[version.run_id]) as run:
        observer({"event": "run", "id": run.id, "path": str(run.path)})
        with quiet(run.logs / "driver.log"):
            done = run_export(
                source,
                Path(out),
                format=format,
                dtype=dtype,
                on_stage=lambda text: observer({"event": "stage", "text": text}),
            )
        run.result(
            model=version.ref, path=str(done.path), format=done.format, dtype=done.dtype, bytes=done.bytes,
            prompts=done.prompts, tokens=done.tokens,
        )  # fmt: skip
    return done


def _examples(home: Path, version: ModelVersion) -> list[Example]:
    """A few prompts of the version's own: rows it was evaluated on or learnt from, else its instruction with a text."""
    try:
        train = runs.get(home, version.run_id).spec["train"]
        name = train["eval_dataset"] or train["dataset"]
        return list(load(name, train["dataset_dir"], max_samples=PROMPTS).examples)
    except (TuneryError, KeyError):
        system = (Message("system", version.system),) if version.system else ()
        before = f"{version.instruction}\n" if version.instruction else ""
        return [Example(str(i), (*system, Message("user", before + text)), None) for i, text in enumerate(_TEXTS)]
