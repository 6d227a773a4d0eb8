"""The command lines `vllm-rollout` and `gate-and-promote`."""

from typing import Annotated

import typer

from vllm_rollout import __version__
from vllm_rollout.commands import (
    capacity,
    diagnose,
    documents,
    history,
    options,
    preflight,
    releases,
    rollout,
    sign_off,
    soak,
    status,
    watch,
)
from vllm_rollout.simulator.main import simulate


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vllm-rollout {__version__}")
        raise typer.Exit


app = typer.Typer(
    help="Gate, roll out and roll back vLLM deployments. The gates themselves: pytest -m staging "
    "--model llama-2-7b. The rollout: gate-and-promote llama-2-7b.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
)
app.command("deploy")(releases.deploy_command)
app.command("preflight")(preflight.preflight_command)
app.command("gate-and-promote")(rollout.promote_command)
app.command("sign-off")(sign_off.sign_off_command)
app.command("soak")(soak.soak_command)
app.command("capacity")(capacity.capacity_command)
app.command("rollback")(rollout.rollback_command)
app.command("watch")(watch.watch_command)
app.command("status")(status.status_command)
app.command("history")(history.history_command)
app.command("diagnose")(diagnose.diagnose_command)
app.command("logs")(releases.logs_command)
app.command("uninstall")(releases.uninstall_command)
app.command("report")(documents.report_command)
app.command("explain")(documents.explain_command)
app.command("simulate")(options.errors_shown()(simulate))
app.add_typer(documents.policy_app, name="policy")


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Gate, roll out and roll back vLLM deployments."""


gate_and_promote_app = typer.Typer(
    add_completion=False, pretty_exceptions_show_locals=False, rich_markup_mode="markdown"
)
gate_and_promote_app.command()(rollout.promote_command)
