"""Options that several commands share, and the way every command meets an expected error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

from vllm_rollout.console import show_error
from vllm_rollout.errors import ExitCode, RolloutError, UsageError

Model = Annotated[str, typer.Argument(metavar="MODEL", help="the model, e.g. llama-2-7b")]
Environment = Annotated[
    str | None, typer.Option("--environment", "-e", help="development, staging, production, …")
]
PolicyFile = Annotated[
    str | None,
    typer.Option(
        "--policy", metavar="FILE", help="overrides the default policy (default: ./rollout.yaml)"
    ),
]
PolicySet = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="override one policy value, e.g. watch.duration=30m"
    ),
]
PlatformName = Annotated[
    str | None, typer.Option("--platform", help="kubernetes or local (default: the policy's)")
]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="namespace of the releases")
]
KubeContext = Annotated[
    str | None, typer.Option("--kube-context", help="context of the kubeconfig to use")
]


def pairs(texts: list[str] | None) -> dict[str, str]:
    """`KEY=VALUE` texts as a mapping.

    Raises:
        UsageError: one has no `=`.
    """
    found = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text!r} has no '='", remedy="Write --set KEY=VALUE.")
        found[key] = value
    return found


@contextmanager
def errors_shown(console: Console) -> Iterator[None]:
    """Turn an expected error into its message and exit code; Ctrl-C into 130."""
    try:
        yield
    except RolloutError as error:
        show_error(console, error)
        raise typer.Exit(int(error.exit_code)) from error
    except KeyboardInterrupt as error:
        console.print("interrupted; nothing more was changed")
        raise typer.Exit(int(ExitCode.INTERRUPTED)) from error
