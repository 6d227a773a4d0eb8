"""Options that several commands share, and how every command handles an expected error."""

import errno
import functools
import getpass
import inspect
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_rollout.cli.console import make_console, show_error
from vllm_rollout.model.errors import ExitCode, RolloutError, UsageError
from vllm_rollout.model.text import all_printable
from vllm_rollout.next_command import options_of_this_run
from vllm_rollout.variables import options_given

if TYPE_CHECKING:
    from vllm_rollout.settings import Settings

console = make_console()

_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
NO_REASON = "not given"

Model = Annotated[str, typer.Argument(metavar="MODEL", help="the model, e.g. llama-2-7b")]


def environment_option(default: str) -> Any:
    """The option --environment of a command, which says what it takes without it."""
    return typer.Option(
        "--environment", "-e", help=f"development, staging, production, … (default: {default})"
    )


Environment = Annotated[str | None, environment_option("the first")]
LastEnvironment = Annotated[str | None, environment_option("the last")]
EnvironmentBeforeLast = Annotated[str | None, environment_option("the one before the last")]
ReportDir = Annotated[
    str | None, typer.Option("--report-dir", help="where reports go (default: reports)")
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="processes or pods that make load (default: the policy's load.workers)",
    ),
]
LoadInCluster = Annotated[
    bool,
    typer.Option(
        "--load-in-cluster", help="make load by pods in the deployment's cluster and not here"
    ),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="show every check of every gate at the end"),
]
PolicyFile = Annotated[
    str | None,
    typer.Option(
        "--policy", metavar="FILE", help="overrides the default policy (default: ./rollout.yaml)"
    ),
]
PolicyChanges = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="override one policy value, e.g. watch.duration=30m; repeatable",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Options of every command about releases; each field is one."""

    policy: PolicyFile = None
    changes: PolicyChanges = None
    platform: Annotated[
        str | None, typer.Option("--platform", help="kubernetes or local (default: the policy's)")
    ] = None
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", help="namespace of the releases (default: the policy's)"),
    ] = None
    kube_context: Annotated[
        str | None,
        typer.Option("--kube-context", help="context of the kubeconfig (default: the current one)"),
    ] = None

    def settings(
        self,
        *,
        base_url: str | None = None,
        report_dir: str | None = None,
        workers: int | None = None,
        load_in_cluster: bool = False,
        needs_platform: bool = True,
        models: Sequence[str] = (),
    ) -> "Settings":
        """The settings that follow; they have a platform, unless a URL alone is enough."""
        from vllm_rollout.settings import load_settings

        return load_settings(
            policy_file=self.policy,
            overrides=pairs(self.changes),
            platform=self.platform,
            namespace=self.namespace,
            kube_context=self.kube_context,
            base_url=base_url,
            report_dir=report_dir,
            workers=workers,
            load_in_cluster=load_in_cluster,
            needs_platform=needs_platform,
            models=models,
        )

    def given(self) -> list[tuple[str, str]]:
        """The options, and their values, by which another command makes the same choices."""
        return options_given(
            policy=self.policy,
            platform=self.platform,
            namespace=self.namespace,
            kube_context=self.kube_context,
            changes=self.changes or [],
        )

    def for_gates(self, settings: "Settings") -> list[str]:
        """The same choices, as the gates' own pytest options."""
        words = ["--platform", settings.policy.platform, "--namespace", settings.policy.namespace]
        for change in self.changes or []:
            words += ["--policy-set", change]
        if self.policy:
            words += ["--policy", self.policy]
        if settings.kube_context:
            words += ["--kube-context", settings.kube_context]
        return words


def for_load(workers: int | None, *, in_cluster: bool) -> list[str]:
    """Return the options of load, as the gates' own pytest options."""
    words = ["--workers", str(workers)] if workers else []
    return [*words, "--load-in-cluster"] if in_cluster else words


def user_name() -> str:
    """Return who runs this: the CI's user, else this machine's."""
    return (
        os.environ.get("GITLAB_USER_LOGIN") or os.environ.get("GITHUB_ACTOR") or getpass.getuser()
    )


def say(text: str) -> None:
    """Print a line as it is."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def say_json(data: object) -> None:
    """Print JSON-ready data for programs, every text in it printable and without secrets."""
    typer.echo(json.dumps(all_printable(data), indent=1))


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
def errors_shown() -> Iterator[None]:
    """Turn an expected error into its message and exit code, Ctrl-C into 130."""
    try:
        yield
    except RolloutError as error:
        show_error(console, error)
        raise typer.Exit(int(error.exit_code)) from error
    except OSError as error:
        show_error(console, _of_the_system(error))
        raise typer.Exit(int(ExitCode.UNREACHABLE)) from error
    except KeyboardInterrupt as error:
        say(f"interrupted; {str(error) or 'nothing more was changed'}")
        raise typer.Exit(int(ExitCode.INTERRUPTED)) from error


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM, by which CI and systemd cancel, ends a command as Ctrl-C does."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def ended_by_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set `stop` instead of ending the process."""
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _of_the_system(error: OSError) -> RolloutError:
    """An error of the operating system; a full disk and a read-only folder have one remedy."""
    if error.errno not in _NOT_WRITABLE:
        return RolloutError(str(error))
    what = f"{error.filename} cannot" if error.filename else "a file of this run cannot"
    return RolloutError(
        f"{what} be written: {error.strerror}",
        remedy="Make room there, or name another folder with --report-dir.",
    )


def about_releases(command: Callable[..., None]) -> Callable[..., None]:
    """Make `command(…, choice)` a command with the options of `Choice`, its errors shown."""
    names = [field.name for field in fields(Choice)]

    @functools.wraps(command)
    def run(**arguments: object) -> None:
        with errors_shown(), _interrupted_by_sigterm():
            choice = Choice(**{name: arguments.pop(name) for name in names})  # type: ignore[arg-type]
            with options_of_this_run(choice.given()):
                command(**arguments, choice=choice)

    own = inspect.signature(command).parameters.values()
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in (*own, *inspect.signature(Choice).parameters.values())
        if parameter.name != "choice"
    ]
    # typer reads a command's options from its signature.
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
