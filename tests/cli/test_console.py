"""Tables and help fit where they are read."""

import pytest
from rich.table import Table
from typer.testing import CliRunner

from vllm_rollout.cli.console import make_console, show_table
from vllm_rollout.cli.main import app


@pytest.mark.parametrize("columns", ["60", "", "0"])
def test_tables_obey_columns_and_a_row_is_one_line_in_a_pipe(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    table = Table("decision", "why")
    table.add_row("rollback", "a reason " * 40)
    table.add_row("promoted", "none")

    show_table(make_console(), table)

    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 60 if columns == "60" else len(printed) == 6


def test_a_table_gives_its_lines_before_a_word_is_folded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    table = Table()
    cells = ("development", "not deployed", "55dbdec66655", "1/1", "1/1", "0", "passed", "3m47s")
    for title in ("environment", "revision", "build", "on build", "ready", "restarts", "gates", ""):
        table.add_column(title, overflow="fold")
    table.add_row(*cells)

    show_table(make_console(), table)

    printed = capsys.readouterr().out.splitlines()
    assert " ".join(cells).split() == printed[-1].split()


def test_an_unknown_command_gets_the_nearest() -> None:
    for words, nearest in ((["deplyo", "m"], "deploy"), (["policy", "shwo"], "show")):
        refused = CliRunner().invoke(app, words)
        assert refused.exit_code == 2
        assert f"Did you mean '{nearest}'" in " ".join(refused.output.split())
