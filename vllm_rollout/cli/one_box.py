"""`vllm-rollout up`, `restart` and `backup`: the upkeep of one machine's releases."""

import getpass
import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_rollout.cli import options
from vllm_rollout.cli.console import show_error
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import ExitCode, RolloutError, UsageError
from vllm_rollout.next_command import next_command, release_command
from vllm_rollout.policy import Policy
from vllm_rollout.rollout.lease import hold
from vllm_rollout.rollout.run import SystemClock

if TYPE_CHECKING:
    from vllm_rollout.platform.local import LocalPlatform
    from vllm_rollout.settings import Settings


@options.about_releases
def up_command(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="default: every model of this machine")
    ] = None,
    environment: options.Environment = None,
    systemd: Annotated[
        bool,
        typer.Option("--systemd", help="print a systemd unit that does this at boot, and no more"),
    ] = False,
    *,
    choice: options.Choice,
) -> None:
    """Bring back what should serve on this machine (local), as after a reboot.

    Each release that served, in every environment, serves the same build and revision again, at
    the same URL; what runs already is left alone.

    Exit codes: 0 all of it serves, 2 usage error, 4 something does not serve.
    """
    settings = choice.settings()
    box = _local(settings)
    if systemd:
        typer.echo(_unit(), nl=False)
        return
    failed = 0
    waited_for = []
    for each in _releases(box, settings.policy, model, environment):
        try:
            with hold(box.store, each.model, clock=SystemClock(), on_wait=options.say) as held:
                box.guard(held)
                started = box.upkeep.start(each)
        except RolloutError as error:
            failed += 1
            _say_failed(each, error)
            continue
        if started:
            options.say(f"{each}: its router was not running: started again")
        waited_for.append(each)
    for each in waited_for:
        try:
            options.say(f"{each}: {box.upkeep.wait(each)} at {box.route(each)}")
        except RolloutError as error:
            failed += 1
            _say_failed(each, error)
            again = release_command("restart", each)
            options.say(f"Once its cause is gone, this starts it again: {again}")
    if failed:
        raise typer.Exit(int(ExitCode.UNREACHABLE))
    if not waited_for:
        options.say("nothing should serve here")


@options.about_releases
def restart_command(
    model: options.Model,
    environment: options.Environment = None,
    *,
    choice: options.Choice,
) -> None:
    """Start MODEL's replicas again that are not ready (local): the cause of a crash loop is gone.

    In --environment, by default the last. Replicas that are ready go on, no request is lost, and
    there is no new revision.
    """
    settings = choice.settings()
    box = _local(settings)
    deployment = settings.deployment(model, environment or settings.policy.order[-1])
    with hold(box.store, model, clock=SystemClock(), on_wait=options.say) as held:
        box.guard(held)
        if box.upkeep.restart(deployment):
            options.say(f"{deployment}: {box.upkeep.wait(deployment)} at {box.route(deployment)}")
        else:
            options.say(f"{deployment}: every replica is ready, and goes on")


@options.about_releases
def backup_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="where the copy goes")],
    *,
    choice: options.Choice,
) -> None:
    """Copy the state of this machine's releases (local) to FILE, while they serve.

    It has releases, revisions and their values, evidence, sign-offs, decisions and journal. It has
    no secret and no model.
    """
    settings = choice.settings()
    _local(settings).upkeep.back_up(file)
    options.say(f"{file}: a copy of {settings.policy.local.state}/state.db, {_size(file)}")


def _size(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.1f} MB"


def _local(settings: "Settings") -> "LocalPlatform":
    from vllm_rollout.platform.local import LocalPlatform

    platform = settings.reader()
    if not isinstance(platform, LocalPlatform):
        raise UsageError(
            f"this is for releases of one machine, and the platform is {platform.name}",
            remedy="A cluster starts its pods again by itself. For this machine's releases: "
            "--platform local.",
        )
    return platform


def _say_failed(deployment: Deployment, error: RolloutError) -> None:
    options.say(f"{deployment} does not serve:")
    show_error(options.console, error)


def _releases(
    box: "LocalPlatform", policy: Policy, model: str | None, environment: str | None
) -> list[Deployment]:
    """Return what should serve, users' environment first, and say what this policy has not.

    Raises:
        UsageError: there is nothing of that model or environment.
    """
    from vllm_rollout.platform.local.state import name_of

    there = box.upkeep.releases()
    if environment is not None:
        policy.environment(environment)
    found = []
    for name in reversed(policy.order):
        for each in sorted(set(there.values())):
            deployment = policy.deployment(each, name)
            found.append(deployment)
            with suppress(UsageError):  # too long a name for it to have one
                found.append(deployment.canary)
    found = [each for each in found if name_of(each) in there]
    for unknown in sorted(set(there) - {name_of(each) for each in found}):
        options.say(f"{unknown} is not of this policy's environments and namespace: left alone")
    asked = [
        each
        for each in found
        if model in (None, each.model) and environment in (None, each.environment)
    ]
    if (model or environment) and not asked:
        raise UsageError(
            f"nothing of {model or environment} should serve here",
            remedy="See what is deployed where: "
            + next_command("vllm-rollout", "status", *([model] if model else [])),
        )
    return asked


def _unit() -> str:
    """Return a systemd unit for this folder, user, PATH and the options of this command."""
    program = str(Path(sys.executable).with_name("vllm-rollout"))
    words = [program, *shlex.split(next_command("vllm-rollout", "up"))[1:]]
    folder = str(Path.cwd()).replace("%", "%%")
    return f"""\
# /etc/systemd/system/vllm-rollout.service, then: systemctl enable vllm-rollout
[Unit]
Description=vllm-rollout: bring back what should serve
After=network.target nvidia-persistenced.service
StartLimitIntervalSec=0

[Service]
Type=oneshot
RemainAfterExit=yes
User={getpass.getuser()}
WorkingDirectory={folder}
Environment={_quoted(f"PATH={os.environ.get('PATH', os.defpath)}")}
# The secrets that replicas are given, a line NAME=VALUE for each; of mode 600.
EnvironmentFile=-/etc/vllm-rollout.env
ExecStart={" ".join(_quoted(word).replace("$", "$$") for word in words)}
TimeoutStartSec=infinity
# Tried again where something does not serve yet; what serves goes on meanwhile.
Restart=on-failure
RestartSec=30
KillMode=process

[Install]
WantedBy=multi-user.target
"""


def _quoted(word: str) -> str:
    """Return a word of a unit file, where % has a meaning of its own."""
    escaped = word.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
