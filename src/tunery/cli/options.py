"""What the verbs share: their options, the project they are about, the screen they write to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

HELP = {"help_option_names": ["-h", "--help"]}
ProjectFile = Annotated[
    Path | None,
    typer.Argument(metavar="[FILE]", help="tunery.yaml, or LLaMA-Factory's YAML. Default: ./tunery.yaml"),
]
ProjectOption = Annotated[Path | None, typer.Option("--project", "-p", help="The project file. Default: ./tunery.yaml")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for machines.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would happen, start nothing.")]


def open_screen(as_json: bool) -> Any:
    """The screen of one command."""
    from tunery.cli.screen import Screen

    return Screen(as_json=as_json)


def read_project(path: Path | None, sets: list[str] | None, section: str | None) -> Any:
    """The project of a command: its file, with settings changed; see tunery.config.load_project."""
    from tunery.config import load_project

    return load_project(path, sets or (), section)


DEFAULT = "(default)"  # nobody types it


class DefaultGroup(TyperGroup):
    """A group that is its command DEFAULT, unless another one is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


class DefaultCommand(TyperCommand):
    """The command without a name of its own: help and errors show it as it is typed, by its group's."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return super().make_context(parent.info_name, args, parent=parent.parent, **extra)
