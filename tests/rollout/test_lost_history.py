"""A history that is gone while the store knows of it: refused, with what to do."""

import pytest
from support.world import MODEL, PRODUCTION, STAGING, World

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import ExitCode, UsageError
from vllm_rollout.policy import load_policy
from vllm_rollout.rollout.engine import gate_and_promote, manual_rollback
from vllm_rollout.rollout.lost_history import ensure_history
from vllm_rollout.rollout.model_status import model_status

RECORDED = "revision 7, by Helm's driver configmap"


@pytest.mark.parametrize("lost", [STAGING, PRODUCTION])
def test_a_lost_history_is_refused_before_anything_is_done(world: World, lost: Deployment) -> None:
    del world.platform.releases[lost.release]
    world.platform.expected[lost.environment] = RECORDED

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.USAGE
    assert RECORDED in evidence.conclusion
    for word in ("another Helm driver", "namespace", "uninstalled by hand"):
        assert word in evidence.conclusion
    assert f"vllm-rollout uninstall {MODEL} -e {lost.environment}" in evidence.conclusion
    assert (world.platform.calls, evidence.runs) == ([], ())


def test_rollback_and_status_say_that_the_history_is_lost(world: World) -> None:
    del world.platform.releases[PRODUCTION.release]
    world.platform.expected["production"] = RECORDED

    evidence = manual_rollback(world.tools(), to=None, reason="a test")
    status = model_status(world.platform, load_policy(None), MODEL, world.clock.now())

    assert RECORDED in evidence.conclusion
    assert RECORDED in status.environments[-1].blocks[0]


def test_what_an_earlier_version_has_kept_tells_of_a_history(world: World) -> None:
    world.platform.expected["production"] = None
    assert gate_and_promote(world.tools()).exit_code == ExitCode.OK
    history = world.platform.releases.pop(PRODUCTION.release)

    with pytest.raises(UsageError, match=f"revision {history[-1].number} has passed its gates"):
        ensure_history(world.platform, PRODUCTION)
    for key in [key for key in world.platform.store.entries if key.startswith("passed/")]:
        del world.platform.store.entries[key]
    with pytest.raises(UsageError, match="found revision"):
        ensure_history(world.platform, PRODUCTION)
    world.platform.expected["production"] = ""
    ensure_history(world.platform, PRODUCTION)
