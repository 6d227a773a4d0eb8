"""The command lines `vllm-rollout` and `gate-and-promote`.

The module of a command is imported when that command is called: `--version` and `--help` need none
of what the commands work with.
"""

from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from vllm_rollout import __version__
from vllm_rollout.cli.examples import epilog


class _Lazy(NamedTuple):
    """Where a command is, and the first sentence of its help."""

    module: str
    name: str
    help: str


_COMMANDS = {
    "init": _Lazy(
        "vllm_rollout.cli.init",
        "init_command",
        "Write a first rollout.yaml, with comments, for a team to change.",
    ),
    "deploy": _Lazy(
        "vllm_rollout.cli.releases",
        "deploy_command",
        "Deploy MODEL to the first environment, where rollouts begin.",
    ),
    "check": _Lazy(
        "vllm_rollout.cli.check",
        "check_command",
        "Say what answers at URL: health, key, models, APIs, one token, metrics. Changes nothing.",
    ),
    "preflight": _Lazy(
        "vllm_rollout.cli.preflight",
        "preflight_command",
        "Check what a build of MODEL needs in --environment (default: the last), changing nothing.",
    ),
    "gate-and-promote": _Lazy(
        "vllm_rollout.cli.rollout_commands",
        "promote_command",
        "Gate MODEL where it is, promote exactly what was gated, watch it, roll back on a trigger.",
    ),
    "sign-off": _Lazy(
        "vllm_rollout.cli.sign_off",
        "sign_off_command",
        "Approve evidence of MODEL, so that gate-and-promote may take the build on, or reject it.",
    ),
    "soak": _Lazy(
        "vllm_rollout.cli.soak",
        "soak_command",
        "Probe MODEL's health until its soak is over, and keep the samples.",
    ),
    "capacity": _Lazy(
        "vllm_rollout.capacity.command",
        "capacity_command",
        "Find the highest rate at which MODEL's SLOs hold, "
        "by loads of growing and narrowing rates.",
    ),
    "rollback": _Lazy(
        "vllm_rollout.cli.rollout_commands",
        "rollback_command",
        "Return MODEL in --environment (default: the last) to an earlier revision, and verify it.",
    ),
    "watch": _Lazy(
        "vllm_rollout.cli.watch",
        "watch_command",
        "Stand watch over MODEL in --environment (default: the last), and roll back on a trigger.",
    ),
    "status": _Lazy(
        "vllm_rollout.cli.status",
        "status_command",
        "Show where MODEL stands: what runs in each environment, and what blocks its promotion.",
    ),
    "top": _Lazy(
        "vllm_rollout.cli.top",
        "top_command",
        "Show MODEL's metrics as it runs, per environment, revision and side of a ramp.",
    ),
    "history": _Lazy(
        "vllm_rollout.cli.history",
        "history_command",
        "Show every decision about MODEL, who took it, when, why and on which evidence.",
    ),
    "diagnose": _Lazy(
        "vllm_rollout.cli.diagnose",
        "diagnose_command",
        "Say why replicas of MODEL are not ready, and what to do about it.",
    ),
    "up": _Lazy(
        "vllm_rollout.cli.one_box",
        "up_command",
        "Bring back what should serve on this machine (local), as after a reboot.",
    ),
    "restart": _Lazy(
        "vllm_rollout.cli.one_box",
        "restart_command",
        "Start MODEL's replicas again that are not ready (local): the cause of a crash loop is "
        "gone.",
    ),
    "backup": _Lazy(
        "vllm_rollout.cli.one_box",
        "backup_command",
        "Copy the state of this machine's releases (local) to FILE, while they serve.",
    ),
    "logs": _Lazy(
        "vllm_rollout.cli.releases",
        "logs_command",
        "Print the last log lines of MODEL's replicas in --environment (default: the first).",
    ),
    "uninstall": _Lazy(
        "vllm_rollout.cli.releases",
        "uninstall_command",
        "Remove MODEL's release from --environment (default: all but the last, if you agree).",
    ),
    "report": _Lazy(
        "vllm_rollout.cli.reports",
        "report_command",
        "Show where the newest report of MODEL is, or of RUN; open it, or write the list of all "
        "runs.",
    ),
    "explain": _Lazy(
        "vllm_rollout.cli.documents",
        "explain_command",
        "Show how each verdict of an evidence file was reached, to check it by hand.",
    ),
    "simulate": _Lazy(
        "vllm_rollout.cli.simulate",
        "simulate_command",
        "Serve as vLLM would, without a model, with a dial for every fault.",
    ),
    "policy": _Lazy(
        "vllm_rollout.cli.documents", "policy_app", "The numbers everything is judged by."
    ),
}


class _LazyGroup(TyperGroup):
    """Knows its commands by name and one line of help, and imports the one that is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of that name, imported, and the arguments that are left."""
        name, stub, rest = super().resolve_command(ctx, args)
        return name, stub if name is None else _imported(name), rest


def _imported(name: str) -> Any:
    where = _COMMANDS[name]
    found = getattr(import_module(where.module), where.name)
    if isinstance(found, typer.Typer):
        command: Any = typer.main.get_group(found)
        command.name = name
        return command
    return typer.main.get_command(_alone(found, name))


def _alone(function: Any, name: str) -> typer.Typer:
    """A command line with one command."""
    alone = typer.Typer(
        add_completion=False, pretty_exceptions_show_locals=False, rich_markup_mode="markdown"
    )
    alone.command(name, epilog=epilog(name))(function)
    return alone


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vllm-rollout {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_LazyGroup,
    help="Gate, roll out and roll back vLLM deployments. The gates themselves: pytest -m staging "
    "--model llama-2-7b. The rollout: gate-and-promote llama-2-7b.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
)


def _stub() -> None:
    """Stand for a command that is not imported yet."""


for _name, _command in _COMMANDS.items():
    app.command(_name, help=_command.help)(_stub)


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Gate, roll out and roll back vLLM deployments."""


def gate_and_promote() -> None:
    """The command line `gate-and-promote`."""
    from vllm_rollout.cli.rollout_commands import promote_command

    _alone(promote_command, "gate-and-promote")()
