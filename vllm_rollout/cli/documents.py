"""`vllm-rollout policy` and `vllm-rollout explain`."""

from pathlib import Path
from typing import Annotated

import typer

from vllm_rollout.cli import options
from vllm_rollout.cli.examples import epilog
from vllm_rollout.model.evidence import read_evidence
from vllm_rollout.model.text import printable, public_address
from vllm_rollout.policy import Policy, dump_policy, load_policy
from vllm_rollout.report.explain import explain_evidence
from vllm_rollout.resources import POLICY_SCHEMA

policy_app = typer.Typer(
    help="The numbers everything is judged by.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@policy_app.command("show", epilog=epilog("policy show"))
def show(policy: options.PolicyFile = None, changes: options.PolicyChanges = None) -> None:
    """Print the policy that applies: defaults, the file's overrides and --set."""
    with options.errors_shown():
        path = Path(policy) if policy else None
        typer.echo(printable(_printed(load_policy(path, overrides=options.pairs(changes)))))


def _printed(policy: Policy) -> str:
    """Return the policy as YAML, without the paths of URLs that may hold a token."""
    text = dump_policy(policy)
    for rules in (policy, *policy.models.values()):
        for url in (rules.windows.calendar or "", rules.windows.on_call.url or ""):
            if "://" in url and (address := public_address(url)) != url:
                text = text.replace(url, f"{address}/[hidden]")
    return text


@policy_app.command("schema", epilog=epilog("policy schema"))
def schema() -> None:
    """Print the JSON Schema of rollout.yaml, for editors."""
    typer.echo(POLICY_SCHEMA.read_text(encoding="utf-8"))


def explain_command(
    evidence: Annotated[Path, typer.Argument(help="an evidence.json")],
) -> None:
    """Show how each verdict of an evidence file was reached, to check it by hand."""
    with options.errors_shown():
        options.console.print(explain_evidence(read_evidence(evidence)), highlight=False)
