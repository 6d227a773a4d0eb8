"""One hostile namespace, seen by every command: nothing that it holds, or that a failing platform
says, brings the suite's own secret or a command to a terminal into an output or the store."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.simulated import WEDNESDAY
from support.world import MODEL, PRODUCTION, SIGN_OFF, STAGING, World, passing_evidence
from typer.testing import CliRunner

from vllm_rollout.cli import main, options
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.evidence import Attachment, Step, write_evidence
from vllm_rollout.model.symptoms import Symptoms
from vllm_rollout.model.text import own_secret
from vllm_rollout.observe.live_figures import LiveFigures
from vllm_rollout.policy import load_policy
from vllm_rollout.rollout.audit_log import AuditLog, DecisionKind
from vllm_rollout.rollout.evidence_store import store_evidence
from vllm_rollout.rollout.journal import Journal, JournalEntry, Phase
from vllm_rollout.settings import Settings

CANARY = "Zq9-canary/key+of=ours-which-is-longer-than-a-column-of-any-table-is-wide"
ORDERS = "\x1b]52;c;ZXZpbA==\x07\n::error::all is well\n##[error]so it is"
HOSTILE = f"said {CANARY} and {ORDERS}"
SAYS_IT = ["sh", "-c", "cat >> got.json; cat said.txt; exit 3"]
COMMANDS = [
    ["status", MODEL, "--metrics"], ["status", MODEL, "--metrics", "--json"],
    ["top", MODEL, "--once"], ["top", "--once", "--json"], ["history", MODEL],
    ["history", MODEL, "-e", "staging"], ["history", MODEL, "-e", "staging", "--json"],
    ["diagnose", MODEL, "-e", "production"], ["diagnose", MODEL, "-e", "production", "--json"],
    ["logs", MODEL, "-e", "staging"], ["gate-and-promote", MODEL, "--reason", HOSTILE],
    ["sign-off", MODEL, "--evidence", "DIGEST", "--as", HOSTILE, "--note", HOSTILE],
    ["report", "evidence.json"], ["explain", "evidence.json"], ["policy", "show"],
    ["preflight", MODEL, "-f", "values.yaml"], ["deploy", MODEL, "--values", "values.yaml"],
    ["rollback", MODEL, "--reason", HOSTILE], ["soak", MODEL, "-e", "staging", "--once"],
    ["capacity", MODEL, "--json"], ["watch", MODEL, "--for", "10ms"],
    ["report", MODEL, "--json"], ["report", MODEL, HOSTILE], ["report", "--index"],
    ["uninstall", MODEL, "-e", "staging"], ["up", MODEL], ["restart", MODEL, "-e", "staging"],
    ["backup", HOSTILE], ["init", "--yes", "--namespace", HOSTILE], ["check", HOSTILE],
]  # fmt: skip
"""Of each command at least one; most of the platform fails from `preflight` on."""
FAILING = COMMANDS.index(["preflight", MODEL, "-f", "values.yaml"])


def texts(value: Any) -> Iterator[str]:
    """Every text in JSON data."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


def clean(text: str, where: object) -> None:
    for part in ("Zq9-canary", "a-column-of-any", "\x1b]"):
        assert part not in text, where
    for line in text.splitlines():
        assert not line.lstrip().startswith("::"), where
        assert "##[" not in line, where


def fill(world: World) -> str:
    """Write hostile text to wherever the namespace has text; return the digest of evidence."""
    store, now = world.platform.store, world.clock.now()
    revision = world.platform.history(STAGING)[-1]
    pending = passing_evidence(
        STAGING, now, revision=revision.number, build=revision.build, conclusion=HOSTILE,
        steps=(Step(at=now, title=HOSTILE, detail=HOSTILE),),
    )  # fmt: skip
    run = pending.runs[0]
    policy = load_policy(None, overrides=world.overrides)
    gates = tuple(
        replace(gate, attachments=(Attachment(title=HOSTILE, text=HOSTILE),)) for gate in run.gates
    )
    run = replace(run, gates=gates, policy_digest=policy.digest, revision_created=revision.created)
    pending = replace(pending, runs=(run,))
    digest = store_evidence(store, pending)
    write_evidence(pending, Path("evidence.json"))
    for kind, who in ((DecisionKind.REJECTION, f"{HOSTILE} (as x)"), (DecisionKind.REFUSAL, "x")):
        AuditLog(store).append(
            kind, model=MODEL, environment="staging", at=now, who=who, why=HOSTILE,
            build=revision.build.digest, evidence=digest, run_id="r",
        )  # fmt: skip
    entry = JournalEntry(
        run_id="r", model=MODEL, source="staging", target="production", build=revision.build,
        before=1, phase=Phase.DONE, note=HOSTILE, holder="x", started=now, updated=now,
        unseen=HOSTILE,
    )  # fmt: skip
    Journal(store, MODEL).write(entry)
    store.write(f"undelivered/{MODEL}", {"file": [HOSTILE]}, expect=None)
    releases = world.platform.releases
    releases[STAGING.release][-1] = replace(revision, description=HOSTILE)
    return digest


def test_no_command_passes_on_a_secret_or_an_order(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own_secret(CANARY)
    world.clock.wall = datetime.now(UTC) - WEDNESDAY - timedelta(hours=1)
    channel = {
        "name": "file",
        "kind": "command",
        "command": SAYS_IT,
    }
    world.overrides |= {
        SIGN_OFF: {"valid": "48h"}, "notifications.channels": [channel],
        "notifications.attempts": 1, "watch.interval": "10ms",
        "environments.staging.soak.observed_by": "samples",
    }  # fmt: skip
    Path("said.txt").write_text(HOSTILE)
    Path("values.yaml").write_text("replicas: 1\n")
    digest = fill(world)
    platform: Any = world.platform
    store = platform.store
    own = {key for key in store.entries if key.startswith(("decisions/", "evidence/", "rollout/"))}
    policy = load_policy(None, overrides=world.overrides)
    settings = Settings(policy=policy, platform=platform, base_url=None, report_dir=Path("reports"))
    monkeypatch.setattr(options.Choice, "settings", lambda _self, **_: settings)
    monkeypatch.setattr(platform, "logs", lambda *_, **__: HOSTILE)
    # Between two scrapes, which is time that shows nothing here.
    monkeypatch.setitem(LiveFigures.__init__.__kwdefaults__ or {}, "pause_seconds", 0)
    symptoms = Symptoms(
        replica=replace(platform.replicas(PRODUCTION)[0], ready=False, phase=HOSTILE)
    )
    monkeypatch.setattr(platform, "symptoms", lambda _: [symptoms])

    def fails(*_: Any, **__: Any) -> Any:
        raise UnreachableError(HOSTILE, address=HOSTILE, remedy=HOSTILE)

    monkeypatch.setattr(platform, "route", fails)
    assert {words[0] for words in COMMANDS} == set(main._COMMANDS) - {"simulate"}
    for number, words in enumerate(COMMANDS):
        if number == FAILING:
            for name in ("history", "replicas", "weights", "base_url", "preflight", "build"):
                monkeypatch.setattr(platform, name, fails)
        done = CliRunner().invoke(main.app, [digest if w == "DIGEST" else w for w in words])
        assert done.exception is None or isinstance(done.exception, SystemExit), (words, done)
        clean(done.output, words)
        if "--json" in words and number < FAILING:
            for text in texts(json.loads(done.output)):
                clean(text, words)
    assert store.keys("decisions/") > sorted(own & set(store.keys("decisions/")))
    for key, entry in store.entries.items():
        for text in texts(entry.value):
            clean(text, key)
    for path in (each for each in tmp_path.rglob("*") if each.is_file()):
        if path.name not in ("said.txt", "evidence.json") or path.parent != tmp_path:
            text = path.read_text(errors="replace")
            for part in ("Zq9-canary", "a-column-of-any"):
                assert part not in text, path
    assert Path("got.json").exists()
