"""`tunery serve`, `tunery keys` and `tunery models alias`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunery.cli.options import (
    DEFAULT,
    HELP,
    AsJson,
    DefaultCommand,
    DefaultGroup,
    DryRun,
    ProjectFile,
    ProjectOption,
    Sets,
)  # fmt: skip
from tunery.cli.options import open_screen as _screen
from tunery.cli.options import read_project as _project
from tunery.errors import ConfigError

if TYPE_CHECKING:
    from tunery.serving import Service
    from tunery.serving.aliases import Alias
    from tunery.serving.keys import Key

serve_app = typer.Typer(
    cls=DefaultGroup, help="Serve versions behind an OpenAI-compatible API, until Ctrl-C.", context_settings=HELP
)
keys_app = typer.Typer(help="Make and revoke API keys.", no_args_is_help=True, context_settings=HELP)


@serve_app.command(DEFAULT, cls=DefaultCommand)
def serve(
    file: ProjectFile = None,
    config: Annotated[
        Path | None, typer.Option("--write-config", help="Write the service as a file for Ray's `serve deploy`.")
    ] = None,
    sets: Sets = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Serve the base and every registered version behind an OpenAI-compatible API, until Ctrl-C.

    Versions, aliases and keys made while it runs are taken up. `tunery serve status` and `stop` work from elsewhere.

    Example: [bold]tunery serve --set port=8080 --set 'models=[bikeshop@2]'[/]
    """
    from tunery.ops import services

    screen = _screen(as_json)
    spec = _project(file, sets, "serve")
    if dry_run or config:
        facts = services.describe(spec, config, observer=screen)
        screen.table(("what", "value"), [(k, v) for k, v in facts.items() if k != "applications"])
        screen.result(facts)
        return
    with services.serve(spec, observer=screen) as service:
        screen.stop()
        screen.result({"url": service.url, "models": service.models})
        screen.say(f"{service.url}  models: {', '.join(service.models)}")
        serve_until_stopped(screen, service)


def serve_until_stopped(screen: Any, service: Service) -> None:
    """Returns at Ctrl-C and at SIGTERM; a second one does not wait for answers under way."""
    import signal
    from contextlib import suppress
    from threading import Event

    from tunery.engine.cluster import quiet

    screen.say(f"serving at {service.url} until Ctrl-C")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), quiet(service.logs / "driver.log"):
        Event().wait()
    signal.signal(signal.SIGTERM, before)
    screen.say("answering what was asked, then shutting down")


@serve_app.command("status")
def status(project: ProjectOption = None, as_json: AsJson = False) -> None:
    """Show the services that run from this project: where, since when, with what. Exit 1 when none is ready.

    Example: [bold]tunery serve status --json[/]
    """
    from tunery.ops.services import running

    screen = _screen(as_json)
    found = running(_project(project, None, None))
    screen.table(
        ("run", "url", "state", "replicas", "models"),
        [(s.run, s.url, s.state, s.replicas, ", ".join(s.models)) for s in found],
    )
    if not found:
        screen.say("nothing is served; `tunery serve` starts it")
    screen.result({"services": [dataclasses.asdict(s) for s in found]})
    if not any(s.state == "ready" for s in found):
        raise typer.Exit(1)


@serve_app.command("stop")
def stop(
    run: Annotated[str | None, typer.Argument(help="Its run's id. Default: all that this project serves.")] = None,
    project: ProjectOption = None,
    as_json: AsJson = False,
) -> None:
    """Stop serving: what was asked is still answered, then everything ends.

    Example: [bold]tunery serve stop[/]
    """
    from tunery.ops.services import stop as stop_service

    screen = _screen(as_json)
    ended = stop_service(_project(project, None, None), run)
    screen.say(f"stopped: {', '.join(ended)}" if ended else "nothing is served")
    screen.result({"stopped": ended})


@serve_app.command("logs")
def logs(
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many lines of each file.")] = 40,
    project: ProjectOption = None,
    as_json: AsJson = False,
) -> None:
    """Print the end of the newest service's logs.

    Example: [bold]tunery serve logs -n 100[/]
    """
    from tunery.cli.runs import print_logs
    from tunery.ops.runs import list_runs

    found = [r for r in list_runs(Path(_project(project, None, None).home)) if r.kind == "serve"]
    if not found:
        raise ConfigError("nothing was served yet", hint="`tunery serve` starts it")
    print_logs(found[0], lines, as_json)


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="Whose key it is, as logs and metrics show it.")],
    models: Annotated[
        list[str] | None, typer.Option("--model", help="A name, or a pattern as shop*; repeatable.")
    ] = None,
    endpoints: Annotated[
        list[str] | None, typer.Option("--endpoint", help="chat, completions, extract, ...; repeatable. Default: all.")
    ] = None,
    rpm: Annotated[int | None, typer.Option(help="Requests a minute.")] = None,
    tpm: Annotated[int | None, typer.Option(help="Tokens a minute, of prompts and answers.")] = None,
    concurrent: Annotated[int | None, typer.Option(help="Requests at once.")] = None,
    expires: Annotated[str | None, typer.Option(help="30d, 12h, or a date. Default: never.")] = None,
    project: ProjectOption = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key. It is shown once; a digest of it is kept.

    Example: [bold]tunery keys create crm --model 'shop*' --rpm 600 --expires 90d[/]
    """
    from tunery.ops.access import create_key

    screen = _screen(as_json)
    key, secret = create_key(
        name, project=_project(project, None, None), models=models or ("*",), endpoints=endpoints or ("*",),
        expires=expires, requests_per_minute=rpm, tokens_per_minute=tpm, concurrent_requests=concurrent,
    )  # fmt: skip
    screen.say(f'[bold]{secret}[/]\n[dim]the key of "{key.name}", {key.id}: it is not kept, so copy it now[/]')
    screen.result({**_shown(key), "key": secret})


@keys_app.command("list")
def keys_list(project: ProjectOption = None, as_json: AsJson = False) -> None:
    """List API keys with their scopes and limits.

    Example: [bold]tunery keys list --json[/]
    """
    from tunery.ops.access import list_keys

    screen = _screen(as_json)
    found = [_shown(k) for k in list_keys(_project(project, None, None))]
    columns = ("id", "name", "prefix", "state", "models", "endpoints", "limits", "expires")
    screen.table(
        columns, [tuple(", ".join(v) if isinstance(v := k[c], list) else v or "" for c in columns) for k in found]
    )
    screen.result({"keys": found})


@keys_app.command("revoke")
def keys_revoke(
    key: Annotated[str, typer.Argument(help="Its name or id.")],
    project: ProjectOption = None,
    as_json: AsJson = False,
) -> None:
    """Revoke an API key for good; a running service refuses it within a second.

    Example: [bold]tunery keys revoke crm[/]
    """
    from tunery.ops.access import revoke_key

    screen = _screen(as_json)
    revoked = revoke_key(key, project=_project(project, None, None))
    screen.say(f"{revoked.id} ({revoked.name}) is revoked")
    screen.result(_shown(revoked))


def _shown(key: Key) -> dict[str, Any]:
    limits = {"rpm": key.requests_per_minute, "tpm": key.tokens_per_minute, "concurrent": key.concurrent_requests}
    return {
        "id": key.id, "name": key.name, "prefix": f"{key.prefix}...",
        "state": "revoked" if key.revoked else "expired" if key.expired else "valid",
        "models": list(key.models), "endpoints": list(key.endpoints),
        "limits": " ".join(f"{k}={v}" for k, v in limits.items() if v is not None),
        "created": key.created, "expires": key.expires, "revoked": key.revoked,
    }  # fmt: skip


def models_alias(
    name: Annotated[str, typer.Argument(metavar="ALIAS", help='"prod", "shop@prod", or a model\'s bare name.')],
    versions: Annotated[
        list[str] | None, typer.Argument(metavar="VERSION[=WEIGHT]...", help='"shop@3", or "shop@3=90 shop@4=10".')
    ] = None,
    shadow: Annotated[str | None, typer.Option(help="A version that answers too, unseen, and is compared.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Forget the alias.")] = False,
    project: ProjectOption = None,
    as_json: AsJson = False,
) -> None:
    """Let a name stand for a version, or for several by weight. Running services take it up within a second.

    Example: [bold]tunery models alias prod shop@3=90 shop@4=10 --shadow shop@5[/]
    """
    from tunery.ops.access import remove_alias, set_alias

    screen = _screen(as_json)
    spec = _project(project, None, None)
    if remove:
        remove_alias(name, project=spec)
        screen.say(f"{name} is no alias any more")
        return screen.result({"alias": name, "removed": True})
    alias = set_alias(name, _weights(versions or []), shadow=shadow, project=spec)
    screen.say(f"{name} stands for {shares(alias)}")
    screen.result({"alias": name, **dataclasses.asdict(alias)})


def shares(alias: Alias) -> str:
    """ "shop@3 90%, shop@4 10%; shop@5 in its shadow"."""
    total = sum(alias.versions.values())
    shown = ", ".join(f"{ref} {100 * weight / total:.3g}%" for ref, weight in alias.versions.items())
    return shown + (f"; {alias.shadow} in its shadow" if alias.shadow else "")


def _weights(texts: list[str]) -> dict[str, float]:
    weights = dict(map(_weighted, texts))
    if len(weights) < len(texts):
        raise ConfigError("a version is named twice", hint=f"once each: {', '.join(weights)}")
    return weights


def _weighted(text: str) -> tuple[str, float]:
    ref, _, weight = text.partition("=")
    try:
        return ref, float(weight) if weight else 1.0
    except ValueError:
        raise ConfigError(f'"{weight}" is no weight', hint="for example shop@3=90 shop@4=10") from None
