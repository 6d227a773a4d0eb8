"""`vllm-rollout report`."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from vllm_rollout.cli import options
from vllm_rollout.model.deployment import is_label, label_for
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.evidence import RUN_ID, read_evidence
from vllm_rollout.model.units import counted
from vllm_rollout.report.formatting import time_text
from vllm_rollout.report.render import write_reports
from vllm_rollout.report.run_index import (
    RunIndex,
    Unreadable,
    document,
    find_run,
    read_index,
    read_run,
    run_folders,
)
from vllm_rollout.report.run_rows import RunRow
from vllm_rollout.variables import report_folder

_BROWSER_SECONDS = 10.0


def report_command(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL|FILE]",
            help="the model (default: all), or an evidence.json, to render its reports again",
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="a run, or how its name begins (default: the newest)"),
    ] = None,
    open_it: Annotated[
        bool, typer.Option("--open", help="open it in a browser; where there is none, say its URL")
    ] = False,
    index: Annotated[
        bool, typer.Option("--index", help="write the page over all runs: filter, compare, trends")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="print what the runs found as JSON, for programs")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="with FILE: folder to write to (default: the file's own)"),
    ] = None,
    report_dir: options.ReportDir = None,
) -> None:
    """Show where the newest report of MODEL is, or of RUN; open it, or write the list of all runs.

    With FILE the HTML and JUnit reports of that evidence are rendered again; what was changed
    after it was written is refused.
    """
    with options.errors_shown():
        if model and not run and RUN_ID.fullmatch(model):
            model, run = None, model
        is_file = model is not None and not is_label(model)
        if model and is_file and not (model.endswith(".json") or Path(model).exists()):
            model, is_file = label_for(model), False  # a served name: its runs go by the label
        _check(is_file=is_file, run=run, out=out, index=index, as_json=as_json, open_it=open_it)
        reports = report_folder(report_dir)
        if is_file:
            page = _rendered_again(Path(model or ""), out)
        elif as_json:
            found = (
                RunIndex(runs=(find_run(reports, model or "", run),))
                if run
                else read_index(reports, model or "")
            )
            options.say_json(document(found))
            return
        elif index:
            page = _index(reports, model or "")
        else:
            row = find_run(reports, model or "", run or "")
            options.say(f"{row.name}: {row.verdict}, {time_text(row.finished)}: {row.conclusion}")
            page = (reports / row.page).resolve().as_uri()
            options.say(f"report: {reports / row.page}")
            if not run and (note := _newer(reports, model or "", row)):
                options.say(note)
        if open_it and not _opened(page):
            options.say(f"no browser could be started here: open {page}")


def _newer(reports: Path, model: str, row: RunRow) -> str:
    """Return which runs newer than `row` have no report to show, and why the newest has none."""
    newer = [each for each in run_folders(reports, model) if each.name > row.run]
    if not newer:
        return ""
    found = read_run(newer[0])
    why = found.reason if isinstance(found, Unreadable) else "its page is gone"
    runs = counted(len(newer), "newer run")
    return f"no report of {runs}, the last {newer[0].parent.name}/{newer[0].name}: {why}"


def _check(
    *,
    is_file: bool,
    run: str | None,
    out: Path | None,
    index: bool,
    as_json: bool,
    open_it: bool,
) -> None:
    """Refuse options of which one would be passed over.

    Raises:
        UsageError: two of them do not go together.
    """
    wrong = {
        "an evidence FILE goes with --out and --open alone": is_file and (run or index or as_json),
        "--out is for an evidence FILE": out and not is_file,
        "--index is the page over all runs, and RUN is one": index and run,
        "--json prints, and goes with neither --index nor --open": as_json and (index or open_it),
    }
    for what, holds in wrong.items():
        if holds:
            raise UsageError(what, remedy="Leave one of them out.")


def _rendered_again(evidence: Path, out: Path | None) -> str:
    """Render the reports of an evidence file in this process; return the page's URL."""
    folder = evidence.parent
    paths = write_reports(read_evidence(evidence), out or folder, beside=folder)
    options.console.print(f"{paths.html}\n{paths.junit}", soft_wrap=True, highlight=False)
    return paths.html.as_uri()


def _index(reports: Path, model: str) -> str:
    """Write the page over all runs; return its URL, filtered for `model`."""
    from vllm_rollout.report.index_page import write_index

    if not reports.is_dir():
        raise UsageError(
            f"there is no folder {reports}",
            remedy="Run gates, or name the folder: --report-dir FOLDER.",
        )
    page = write_index(reports)
    options.say(f"index: {page}")
    return page.as_uri() + (f"#model={quote(model)}" if model else "")


def _opened(url: str) -> bool:
    """Open a browser at `url`; False where none can be started.

    In a process of its own and without a terminal: a browser that stays in front, or asks
    something, keeps nobody waiting.
    """
    has_display = sys.platform == "darwin" or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    )
    if not has_display:
        return False  # webbrowser would take a text browser, which needs this terminal
    script = "import sys, webbrowser; sys.exit(not webbrowser.open(sys.argv[1]))"
    browser = subprocess.Popen(  # noqa: S603 - our own words, and a URL of our own
        [sys.executable, "-I", "-c", script, url],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return browser.wait(_BROWSER_SECONDS) == 0
    except subprocess.TimeoutExpired:  # it is the browser itself, which goes on without us
        browser.returncode = 0
        return True
