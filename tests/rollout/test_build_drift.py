"""A tag that moves under an unchanged build is noticed: what really runs is compared."""

from dataclasses import replace

import pytest
from support.world import World

from vllm_rollout.model.deployment import Build, Replica, images_of
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.rollout.engine import gate_and_promote
from vllm_rollout.rollout.preconditions import other_images

OLD, NEW = "sha256:" + "0" * 64, "sha256:" + "1" * 64
TAGGED = Build(values_digest="sha256:v")
BY_DIGEST = replace(TAGGED, image_digest=OLD)


def runs(image: str | None, *, ready: bool = True, build: str = "") -> Replica:
    return Replica(name="r0", phase="Running", ready=ready, restarts=0, image=image, build=build)


@pytest.mark.parametrize(
    ("gated", "replicas", "build", "difference"),
    [
        ([OLD], [runs(OLD)], TAGGED, ""),
        ([OLD], [runs(OLD), runs(NEW)], TAGGED, f"{OLD} -> r0 runs {NEW}"),
        ([OLD], [runs("")], TAGGED, "r0 runs what is not known"),
        ([OLD], [runs(None)], TAGGED, "r0 runs what is not known"),
        ([], [runs(OLD)], TAGGED, f"not known -> r0 runs {OLD}"),
        ([], [runs("")], TAGGED, "not known -> r0 runs what is not known"),
        ([OLD], [], TAGGED, "no replica is ready"),
        ([OLD], [runs(OLD, ready=False)], TAGGED, "no replica is ready"),
        ([OLD], [runs(OLD), runs(NEW, build="another")], TAGGED, ""),  # it still runs the old build
        ([OLD], [runs(NEW)], BY_DIGEST, ""),  # one platform's part of an index, say
        ([], [runs(None)], TAGGED, ""),  # processes: there are no images
    ],
)
def test_what_is_not_known_is_never_the_same(
    gated: list[str], replicas: list[Replica], build: Build, difference: str
) -> None:
    found = "; ".join(other_images(gated, replicas, build))

    assert difference in found
    assert bool(found) == bool(difference)


def test_images_are_those_of_ready_replicas() -> None:
    assert images_of([runs(NEW), runs(OLD), runs(NEW), runs("", ready=True)]) == (OLD, NEW)
    assert images_of([runs(OLD, ready=False), runs(None)]) == ()


def test_a_tag_that_moved_in_staging_after_the_gates_is_not_promoted(world: World) -> None:
    images = world.platform.images
    images |= {"staging": OLD, "production": OLD}

    gate_run = world.gates.run

    def run(*arguments: object, **options: object) -> object:
        result = gate_run(*arguments, **options)  # type: ignore[arg-type]
        images["staging"] = NEW
        return result

    world.gates.run = run  # type: ignore[method-assign, assignment]

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert f"image: {OLD} -> r0 runs {NEW}" in evidence.conclusion
    assert world.platform.calls == []


def test_a_tag_that_moved_on_the_way_to_production_undoes_the_first_step(world: World) -> None:
    world.platform.images |= {"staging": OLD, "production": NEW}

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert f"image: {OLD} -> r0 runs {NEW}" in evidence.conclusion
    assert world.platform.calls == ["apply production 1/4", "rollback production 1"]


def test_the_same_image_everywhere_is_promoted(world: World) -> None:
    world.platform.images |= {"staging": OLD, "production": OLD}

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.OK
    assert evidence.runs[0].images == (OLD,)


@pytest.mark.parametrize(
    ("environment", "code", "calls"),
    [
        ("staging", ExitCode.INCONCLUSIVE, []),
        ("production", ExitCode.ROLLED_BACK, ["apply production 1/4", "rollback production 1"]),
    ],
)
def test_pods_that_are_not_as_rendered_stop_the_promotion(
    world: World, environment: str, code: ExitCode, calls: list[str]
) -> None:
    line = 'Deployment x: spec.containers[vllm].image: "v:1" was rendered, "v:2" runs'
    world.platform.differences[environment] = [line]

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == code
    assert line in evidence.conclusion
    assert world.platform.calls == calls


def test_evidence_of_an_earlier_version_is_gated_again(world: World) -> None:
    build = world.platform.build

    def rendered(*arguments: object) -> Build:
        return replace(build(*arguments), chart_digest="sha256:c", served_digest="sha256:s")  # type: ignore[arg-type]

    history = world.platform.releases["llama-2-7b-staging"]
    former = replace(history[-1].build, chart_digest="sha256:c")
    world.platform.made_of[former.digest] = world.platform.made_of[history[-1].build.digest]
    history[-1] = replace(history[-1], build=former)
    world.pass_development(former)
    world.platform.build = rendered  # type: ignore[method-assign]

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert "gated by an earlier version" in evidence.conclusion
    assert "gate again" in evidence.conclusion
    assert world.platform.calls == []
