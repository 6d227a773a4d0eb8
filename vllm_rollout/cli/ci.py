"""Tells the CI system how a command ended; see `report/ci.py`."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import typer

from vllm_rollout.model.errors import ExitCode, RolloutError
from vllm_rollout.variables import report_folder

if TYPE_CHECKING:
    from vllm_rollout.model.evidence import Evidence
    from vllm_rollout.report.changes import Comparison
    from vllm_rollout.report.render import ReportPaths
    from vllm_rollout.rollout.leased_run import RunTools


def errors_reported_to_ci(command: Callable[..., None]) -> Callable[..., None]:
    """Report an error that ends `command` before there is evidence to the CI system."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        try:
            command(**given)
        except typer.Exit:
            raise
        except (Exception, KeyboardInterrupt) as error:
            from vllm_rollout.report.ci import tell_ci
            from vllm_rollout.report.ci_summary import CiResult

            problem = f"{type(error).__name__}: {error}"
            if isinstance(error, RolloutError):
                problem = f"{error}. {error.remedy}".rstrip()
            # A rollback's `to` is a revision.
            environment = given["environment"] if "environment" in given else given["to"]
            result = CiResult(
                model=given["model"],
                environment=environment or "",
                exit_code=int(_code_of(error)),
                problem=problem,
            )
            tell_ci([result], report_folder(given["report_dir"]), typer.echo)
            raise

    return run


def _code_of(error: BaseException) -> int:
    """The exit code that an error ends in, as `errors_shown` has it."""
    if isinstance(error, RolloutError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    return ExitCode.UNREACHABLE if isinstance(error, OSError) else 1


def tell_ci_of_checks(evidence: "Evidence", exit_code: int, report: "ReportPaths") -> None:
    """Tell the CI system of pre-deployment checks that did not pass."""
    from vllm_rollout.report.ci import tell_ci
    from vllm_rollout.report.ci_summary import CiResult

    (run,) = evidence.runs
    result = CiResult(
        model=evidence.model,
        environment=run.deployment.environment,
        exit_code=exit_code,
        evidence=evidence,
        report=report.html,
        comparisons=report.comparisons,
    )
    tell_ci([result], report.html.parents[2], typer.echo)


def tell_ci_of_end(
    evidence: "Evidence",
    tools: "RunTools",
    comparisons: "Sequence[Comparison]",
    next_command: str,
) -> None:
    """Tell the CI system how a rollout or a rollback ended, and by which command to go on."""
    from vllm_rollout.report.ci import tell_ci
    from vllm_rollout.report.ci_summary import CiResult

    run = tools.run
    page = run.folder / "report.html"
    result = CiResult(
        model=evidence.model,
        environment=run.target.environment,
        exit_code=evidence.exit_code or 0,
        evidence=evidence,
        report=page if page.exists() else None,
        next_command=next_command,
        comparisons=comparisons,
    )
    tell_ci([result], run.folder.parent.parent, typer.echo)
