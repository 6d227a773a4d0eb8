"""Production in another cluster: read there, changed here, and kept where it is changed."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import signing
from support.simulated import WEDNESDAY, MemoryStore, SimulatedPlatform
from support.world import (
    DEVELOPMENT,
    MODEL,
    PRODUCTION,
    RAMP,
    SIGN_OFF,
    STAGING,
    World,
    decide,
    sign_evidence,
)
from typer.testing import CliRunner

from vllm_rollout.cli import options
from vllm_rollout.cli.main import app
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import ExitCode, PolicyError, UnreachableError
from vllm_rollout.model.evidence import Evidence
from vllm_rollout.platform.clusters import Clusters, JoinedStore, as_writer
from vllm_rollout.platform.reader import at_home
from vllm_rollout.platform.writer import ReleaseWriter, writer_of
from vllm_rollout.policy import load_policy
from vllm_rollout.rollout.audit_log import AuditLog, DecisionKind
from vllm_rollout.rollout.engine import gate_and_promote, manual_rollback
from vllm_rollout.rollout.model_status import model_status
from vllm_rollout.settings import Settings, load_settings


@pytest.fixture
def far(world: World) -> SimulatedPlatform:
    """Production's own cluster; the world's platform has the other environments."""
    far = SimulatedPlatform(MemoryStore(world.clock), world.clock)
    far.releases[PRODUCTION.release] = world.platform.releases.pop(PRODUCTION.release)
    far.made_of = world.platform.made_of
    return far


@pytest.fixture
def both(world: World, far: SimulatedPlatform) -> ReleaseWriter:
    """The two as one platform."""
    near = world.platform
    both = Clusters(
        {"development": near, "staging": near, "production": far},  # type: ignore[dict-item]
        home="production",
    )
    world.gates.platform = both
    return as_writer(both)


def commands_read(world: World, both: ReleaseWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of the command line are about both clusters, by the world's policy."""
    settings = Settings(
        policy=world.tools(both).run.policy,
        platform=both,
        base_url=None,
        report_dir=world.tmp_path,
    )
    monkeypatch.setattr(options.Choice, "settings", lambda _self: settings)


def test_a_promotion_reads_there_and_changes_and_keeps_here(
    world: World, far: SimulatedPlatform, both: ReleaseWriter
) -> None:
    del world.overrides[SIGN_OFF]
    sign_evidence(world)
    there = dict(world.platform.store.entries)
    build = world.platform.history(STAGING)[-1].build

    pending = gate_and_promote(world.tools(both))
    assert pending.exit_code == ExitCode.INCONCLUSIVE
    assert "waits for sign-off" in pending.conclusion
    policy = world.tools(both).run.policy
    (block,) = model_status(both, policy, MODEL, world.clock.now()).environments[1].blocks
    assert f"sign-off {MODEL} --evidence {pending.digest[7:23]}" in block

    decide(world, pending, store=writer_of(at_home(both, "production")).store)
    promoted = gate_and_promote(world.tools(both))
    assert promoted.exit_code == ExitCode.OK, promoted.conclusion
    assert (world.platform.calls, far.calls) == ([], RAMP)
    assert far.serving(PRODUCTION) == (build.digest, 4, 4)
    # Evidence of development was found there, where nothing was written, and no lease taken.
    assert world.platform.store.entries == there
    assert world.platform.store.written == 0
    chain = AuditLog(far.store)
    assert chain.verify(MODEL) == []
    assert [str(d.kind) for d in chain.of(MODEL)][-1] == "promoted"
    shown = model_status(both, policy, MODEL, world.clock.now())
    assert [e.build for e in shown.environments][1:] == [build, build]


def test_a_promotion_before_it_needs_nothing_of_the_other_cluster(
    world: World, far: SimulatedPlatform, both: ReleaseWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise UnreachableError("no answer", address="far")

    for name in ("read", "keys", "write", "acquire"):
        monkeypatch.setattr(far.store, name, away)
    monkeypatch.setattr(far, "history", away)
    world.platform.deploy(DEVELOPMENT, {"version": 3})

    promoted = gate_and_promote(world.tools(both, source=DEVELOPMENT, target=STAGING))

    assert promoted.exit_code == ExitCode.OK, promoted.conclusion
    assert AuditLog(world.platform.store).of(MODEL) != []


def test_status_reads_a_rollback_where_it_was_decided(world: World, both: ReleaseWriter) -> None:
    world.platform.deploy(DEVELOPMENT, {"version": 3})
    gate_and_promote(world.tools(both, source=DEVELOPMENT, target=STAGING))
    tools = world.tools(both, source=DEVELOPMENT, target=STAGING)
    back = manual_rollback(tools, to=None, reason="odd answers")
    assert back.exit_code == ExitCode.OK, back.conclusion

    policy = world.tools(both).run.policy
    staging = model_status(both, policy, MODEL, world.clock.now()).environments[1]
    assert back.conclusion in staging.rolled_back


def test_history_asks_for_the_proof_of_a_word_in_its_own_chain(
    world: World, far: SimulatedPlatform, both: ReleaseWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.overrides["environments.development.sign_off"] = {
        "valid": "48h", "identity": "key", "keys": {"Grace of QA": signing.public_line("grace")},
    }  # fmt: skip
    for store, kind, environment in (
        (world.platform.store, DecisionKind.SIGN_OFF, "development"),
        (far.store, DecisionKind.ROLLED_BACK, "production"),
        (far.store, DecisionKind.PROMOTION, "production"),
    ):
        AuditLog(store).append(
            kind, model=MODEL, environment=environment, at=world.clock.now(), who="Ada", why=""
        )
    commands_read(world, both, monkeypatch)
    told = json.loads(CliRunner().invoke(app, ["history", MODEL, "--json"]).output)
    (line,) = told["not_counted"]
    assert line.startswith("entry 1 (sign-off by Ada, ")


def test_a_store_writes_at_home_what_it_read_elsewhere(
    world: World, far: SimulatedPlatform
) -> None:
    near = world.platform.store
    store = JoinedStore(
        {"staging": lambda: near, "production": lambda: far.store},
        home="production",
        earlier=["staging"],
    )
    near.write("passed/m-staging/1", "there", expect=None)
    near.write("rollout/m", "there", expect=None)
    entry = store.read("passed/m-staging/1")
    assert entry is not None
    store.write("passed/m-staging/1", "here", expect=entry.version)
    store.write("soak/m-staging/1", "sample", expect=None)

    assert store.read("rollout/m") is None
    assert near.entries["passed/m-staging/1"].value == "there"
    assert far.store.entries["passed/m-staging/1"].value == "here"
    assert near.entries["soak/m-staging/1"].value == "sample"
    assert store.keys("passed/m-") == ["passed/m-staging/1"]


POLICY = {
    "environments": {
        "staging": {"kubernetes": {"namespace": "stage"}},
        "production": {"kubernetes": {"context": "far"}},
    }
}


def test_a_policy_names_context_and_namespace_of_an_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, server = ("near", "far"), "https://{}.example:6443"
    content = {
        "current-context": "near",
        "clusters": [{"name": n, "cluster": {"server": server.format(n)}} for n in names],
        "contexts": [{"name": n, "context": {"cluster": n}} for n in names],
    }
    (tmp_path / "config").write_text(yaml.safe_dump(content))
    (tmp_path / "rollout.yaml").write_text(yaml.safe_dump(POLICY))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    settings = load_settings(policy_file=str(tmp_path / "rollout.yaml"), namespace="others")

    platforms = settings.platform._platforms  # type: ignore[union-attr]
    where = {name: (p._namespace, p._kubeconfig.context) for name, p in platforms.items()}
    assert where == {
        "development": ("others", "near"),
        "staging": ("stage", "near"),
        "production": ("others", "far"),
    }
    assert settings.deployment(MODEL, "staging") == Deployment(MODEL, "staging", "stage")
    assert not isinstance(load_settings(platform="kubernetes").platform, Clusters)


def test_a_model_has_no_cluster_of_its_own(tmp_path: Path) -> None:
    own = {"environments": {"production": {"kubernetes": {"context": "elsewhere"}}}}
    path = tmp_path / "rollout.yaml"
    path.write_text(yaml.safe_dump({**POLICY, "models": {MODEL: own}}))
    with pytest.raises(PolicyError, match="one cluster and namespace for all models"):
        load_policy(path)


def test_a_sign_off_goes_by_the_chain_that_it_is_added_to(
    world: World, both: ReleaseWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.clock.wall = datetime.now(UTC) - WEDNESDAY - timedelta(hours=1)
    world.overrides["environments.development.sign_off"] = {"valid": "48h"}
    world.platform.deploy(DEVELOPMENT, {"version": 3})

    def to_staging() -> Evidence:
        return gate_and_promote(world.tools(both, source=DEVELOPMENT, target=STAGING))

    digest = to_staging().digest
    commands_read(world, both, monkeypatch)
    words = ["sign-off", MODEL, "--evidence", digest, "--as", "Ada"]
    signed = CliRunner().invoke(app, words)
    assert signed.exit_code == ExitCode.OK, signed.output
    promoted = to_staging()
    assert promoted.exit_code == ExitCode.OK, promoted.conclusion

    again = CliRunner().invoke(app, words)
    assert again.exit_code == ExitCode.USAGE, again.output
    assert "a promotion to staging has rested on it before" in " ".join(again.output.split())
