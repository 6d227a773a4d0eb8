"""Upkeep of one box: a reboot, a crash loop whose cause is gone, a backup."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from support.local_release import TINY_SERVER, LocalRelease, tiny, until
from typer.testing import CliRunner

from vllm_rollout.cli.main import app
from vllm_rollout.model.errors import UsageError
from vllm_rollout.platform.local import processes
from vllm_rollout.platform.local.state import open_state
from vllm_rollout.platform.local.store import SqliteStore


def vllm_rollout(release: LocalRelease, *words: str) -> tuple[int, str]:
    """Run a command about the release's machine; its exit code, and its output in one line."""
    folder = release.platform._state.database.path.parent
    box = ["--platform", "local", "--set", f"local.state={folder}"]
    ended = CliRunner().invoke(app, [*words, *box], catch_exceptions=False)
    return ended.exit_code, " ".join(ended.output.split())


@pytest.fixture
def other(tmp_path: Path) -> Iterator[processes.Identity]:
    """A process that has nothing to do with the suite."""
    process = processes.spawn(["sleep", "600"], env=os.environ, log=tmp_path / "sleep.log")
    yield process
    processes.end_process(process, grace_seconds=5)


def reboot(release: LocalRelease, other: processes.Identity) -> None:
    """Kill all, and give the ids of what was killed to another process."""
    assert release.router is not None
    router = psutil.Process(release.router.pid)
    killed = [router, *router.children(recursive=True), *release.carried()]
    for each in killed:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    until(lambda: not any(map(processes._lives, killed)))
    database = release.platform._state.database
    ids = (other.pid, other.created)
    database.execute("UPDATE releases SET router_pid = ?, router_created = ?", ids)
    database.execute("UPDATE replicas SET pid = ?, created = ?", ids)
    database.execute("UPDATE boot SET id = 'the boot before'")


def test_after_a_reboot_up_brings_back_what_served(
    make_release: Callable[..., LocalRelease], other: processes.Identity, tmp_path: Path
) -> None:
    before = make_release(tmp_path / "state")
    code, said = vllm_rollout(before, "up")
    assert (code, said) == (0, "nothing should serve here")
    before.apply(tiny("a"))
    url = before.url
    reboot(before, other)
    assert before.router == other
    release = make_release(tmp_path / "state")

    code, said = vllm_rollout(release, "status", "llama-2-7b")
    assert code == 0
    assert "staging cannot go on: the release's router is not running: vllm-rollout up" in said
    assert "llama-2-7b -e staging" in said

    code, said = vllm_rollout(release, "up", "llama-2-7b", "-e", "staging")
    assert code == 0, said
    assert "staging/llama-2-7b: revision 1, build" in said
    assert (release.url, release.served(2), release.statuses) == (url, {"a": 2}, ["deployed"])
    pids = release.pids()
    assert other.pid not in pids
    assert processes.is_running(other)

    code, said = vllm_rollout(release, "up")
    assert code == 0
    assert "was not running" not in said
    assert release.pids() == pids

    assert vllm_rollout(release, "up", "qwen-3")[0] == UsageError.exit_code


def test_restart_starts_what_was_given_up_and_leaves_the_rest(
    release: LocalRelease, tmp_path: Path
) -> None:
    server = tmp_path / "server.py"
    shutil.copy(TINY_SERVER, server)
    values = tiny("a")
    values["command"][1] = str(server)
    release.apply(values, 2, 2)
    kept, lost = release.rows
    server.rename(tmp_path / "gone.py")
    with pytest.raises(httpx.HTTPError):
        httpx.post(f"{lost.address}/crash")
    until(lambda: "Failed" in {row.phase for row in release.rows})
    (tmp_path / "gone.py").rename(server)

    with release.clients() as wrong:
        code, said = vllm_rollout(release, "restart", "llama-2-7b", "-e", "staging")

    assert (code, wrong) == (0, []), said
    assert "revision 1, build" in said
    until(lambda: lost.id not in {row.id for row in release.rows})
    rows = release.rows
    assert (rows[0].process, release.statuses) == (kept.process, ["deployed"])
    assert all(each.ready for each in release.platform.replicas(release.deployment))

    code, said = vllm_rollout(release, "restart", "llama-2-7b", "-e", "staging")
    assert said == "staging/llama-2-7b: every replica is ready, and goes on"
    assert vllm_rollout(release, "restart", "llama-2-7b")[0] == UsageError.exit_code


def test_a_backup_holds_everything_that_is_still_in_the_log(
    make_release: Callable[..., LocalRelease], tmp_path: Path
) -> None:
    release = make_release(tmp_path / "state")
    database = release.platform._state.database
    SqliteStore(database).write("evidence/m/1", {"passed": True}, expect=None)
    copied = shutil.copy(database.path, tmp_path / "copied.db")
    with closing(sqlite3.connect(copied)) as plain:
        assert not list(plain.execute("SELECT name FROM sqlite_master WHERE name = 'documents'"))
    file = tmp_path / "backup.db"
    file.write_text("an older backup")

    code, said = vllm_rollout(release, "backup", str(file))

    assert code == 0, said
    assert file.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.glob("backup*")] == ["backup.db"]
    restored = tmp_path / "other" / "state.db"
    restored.parent.mkdir()
    file.rename(restored)
    found = open_state(restored.parent).database
    assert SqliteStore(found).read("evidence/m/1") == SqliteStore(database).read("evidence/m/1")
    assert found.row("PRAGMA journal_mode")["journal_mode"] == "wal"

    for wrong, says in ((database.path, "is the state file itself"), (tmp_path / "no/b", "cannot")):
        code, said = vllm_rollout(release, "backup", str(wrong))
        assert code != 0
        assert says in said


def test_a_systemd_unit_is_printed(
    release: LocalRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a box, 100%"
    folder.mkdir()
    monkeypatch.chdir(folder)
    unit = folder / "vllm-rollout.service"
    code, _ = vllm_rollout(release, "up", "--systemd")
    box = ["--platform", "local", "--set", "local.state=50% $HOME"]
    unit.write_text(CliRunner().invoke(app, ["up", "--systemd", *box]).stdout)

    assert code == 0
    text = unit.read_text()
    assert f"WorkingDirectory={tmp_path}/a box, 100%%\n" in text
    assert '/vllm-rollout" "up" "--platform" "local" "--set" "local.state=50%% $$HOME"\n' in text
    if analyze := shutil.which("systemd-analyze"):
        checked = subprocess.run(
            [analyze, "verify", "--recursive-errors=no", str(unit)], capture_output=True, text=True
        )
        assert (checked.returncode, checked.stderr) == (0, "")


def test_upkeep_is_of_one_machine() -> None:
    ended = CliRunner().invoke(app, ["up", "--platform", "kubernetes", "--kube-context", "c"])
    assert ended.exit_code == UsageError.exit_code
    assert "--platform local" in ended.output
