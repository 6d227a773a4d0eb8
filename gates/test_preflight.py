"""Pre-deployment checks: what a build needs is there before it is deployed."""

from vllm_rollout.judge import check
from vllm_rollout.judge.preflight_checks import (
    admission_verdict,
    quota_verdict,
    references_verdict,
    room_verdict,
)
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.image_name import parse_image
from vllm_rollout.model.preflight_facts import Preflight, switch_off
from vllm_rollout.platform.kubernetes.change_time import too_short
from vllm_rollout.policy import Policy
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder


def test_chart(preflight: Preflight, verdict: VerdictRecorder) -> None:
    """The chart passes helm lint --strict."""
    complaint = preflight.lint()
    verdict(
        check(
            not complaint,
            complaint or "helm lint --strict reports nothing",
            remedy="Correct the chart's file that is named.",
        )
    )


def test_templates(preflight: Preflight, verdict: VerdictRecorder) -> None:
    """The templates render with the environment's values."""
    rendering = preflight.rendering()
    kinds = sorted({str(each.get("kind")) for each in rendering.objects})
    verdict(
        check(
            "Service" in kinds,
            rendering.complaint or f"{len(rendering.objects)} objects: {', '.join(kinds)}",
            remedy="The templates must render with the environment's values, and make a Service.",
        )
    )


def test_values(preflight: Preflight, policy: Policy, verdict: VerdictRecorder) -> None:
    """The values are valid: of this model, and no overlay over the build."""
    problem = preflight.values_problem()
    # Named and not refused: a model may well load faster than its probe allows.
    short = too_short(preflight.rendering().objects, policy.deploy_timeout)
    fine = "the values serve this model, and the overlay leaves the build alone"
    verdict(
        check(
            not problem,
            problem or "; ".join([fine, *short]),
            remedy="Correct the values file that is named.",
        )
    )


def test_gpus(preflight: Preflight, verdict: VerdictRecorder) -> None:
    """Nodes have room for the rollout, its surge included."""
    verdict(room_verdict(preflight.room()))


def test_namespace(preflight: Preflight, verdict: VerdictRecorder) -> None:
    """The namespace is there."""
    phase = preflight.namespace()
    verdict(
        check(
            phase == "Active",
            f"it is {phase}" if phase else "there is no such namespace",
            remedy="Create it (kubectl create namespace), or name another with --namespace.",
        )
    )


def test_quota(preflight: Preflight, verdict: VerdictRecorder) -> None:
    """The namespace's quotas leave room, for the way back too."""
    quotas = preflight.quotas()
    if not quotas:
        verdict(quota_verdict((), ()))
        return
    verdict(quota_verdict(preflight.demands(), quotas, preflight.new_objects()))


def test_admission(preflight: Preflight, verdict: VerdictRecorder) -> None:
    """The API server admits every object and its pods, in a dry run."""
    verdict(admission_verdict(preflight.admission()))


def test_image(preflight: Preflight, verdict: VerdictRecorder) -> None:
    """Every image is in its registry and has a known digest."""
    from vllm_rollout.observe.image_registry import find_image

    for image in preflight.images():
        try:
            name = parse_image(image.reference)
        except UsageError as error:
            verdict(check(False, str(error), remedy=error.remedy))
            continue
        found = find_image(name, credentials=image.credentials)
        moves = "" if name.digest else ": the tag may move, set image.digest to pin it"
        verdict(
            check(
                bool(found.digest),
                found.problem or f"{name} is there, {found.digest}{moves}",
                remedy="Push the image, correct image.repository and image.tag, or give the pods "
                "a pull Secret (image.pullSecrets).",
            )
        )


def test_model(preflight: Preflight, verdict: VerdictRecorder) -> None:
    """The model is on Hugging Face and the pods may read it."""
    from vllm_rollout.observe.hugging_face import is_offline, model_access

    source = preflight.model()
    if source.is_local or (source.path and source.offline):
        asked = "a path in the container" if source.is_local else "the pods have HF_HUB_OFFLINE set"
        verdict(check(True, f"{source.path} is not asked of Hugging Face: {asked}"))
        return
    if not source.path or is_offline():
        verdict(
            check(
                None,
                f"{source.path} was not asked of Hugging Face: HF_HUB_OFFLINE is set here"
                if source.path
                else "the values name no model.path",
                remedy="Unset HF_HUB_OFFLINE where the rollout runs, or switch this check off "
                f"with {switch_off('model')}.",
            )
        )
    access = model_access(source.path, revision=source.revision, token=source.token)
    verdict(
        check(
            bool(access.commit),
            access.problem or f"{source.path} may be read, commit {access.commit}",
            remedy="Ask for access on the model's page, give the pods a token (model.tokenSecret), "
            "or correct model.path and model.revision.",
        )
    )


def test_volumes(preflight: Preflight, verdict: VerdictRecorder) -> None:
    """Claims are bound, and the Secrets and ConfigMaps that pods need are there."""
    verdict(references_verdict(preflight.references()))
