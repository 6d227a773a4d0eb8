"""Every client of the suite, asked at one URL: its outcome, whatever the server does."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch
from urllib.parse import urlsplit

from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.image_name import parse_image
from vllm_rollout.observe import hugging_face, image_registry
from vllm_rollout.observe.calendar import events_between
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.observe.probe import probe
from vllm_rollout.observe.prometheus import Prometheus
from vllm_rollout.policy import load_policy
from vllm_rollout.policy.notifications import MessageKind, Notifications
from vllm_rollout.rollout.delivery import deliver
from vllm_rollout.rollout.notification_format import Message
from vllm_rollout.rollout.promotion_blockers import nobody_on_call

NOW = datetime(2026, 11, 18, 10, 0, tzinfo=UTC)


def _inference(
    ask: Callable[[InferenceClient, float], object],
) -> Callable[[str, float, Path], object]:
    def asked(url: str, seconds: float, _folder: Path) -> object:
        with InferenceClient(url, model="llama-2-7b") as client:
            return ask(client, seconds)

    return asked


def _prometheus(url: str, seconds: float, _folder: Path) -> object:
    client = Prometheus(url, timeout_seconds=seconds)
    try:
        return client.at("up", NOW)
    finally:
        client.close()


def _registry(url: str, seconds: float, _folder: Path) -> object:
    with patch.object(image_registry, "_TIMEOUT_SECONDS", seconds):
        return image_registry.find_image(parse_image(f"{urlsplit(url).netloc}/vllm:v1"))


def _hugging_face(url: str, seconds: float, _folder: Path) -> object:
    with (
        patch.object(hugging_face, "_TIMEOUT_SECONDS", seconds),
        patch.dict("os.environ", {"HF_ENDPOINT": url}),
    ):
        return hugging_face.model_access("meta/llama")


def _calendar(url: str, seconds: float, _folder: Path) -> object:
    changes = {"windows.calendar": url, "windows.calendar_timeout": f"{seconds * 1000:.0f}ms"}
    windows = load_policy(None, overrides=changes).windows
    return events_between(windows, NOW, NOW + timedelta(days=1))


def _on_call(url: str, seconds: float, _folder: Path) -> object:
    changes = {"windows.on_call.url": url, "windows.on_call.timeout": f"{seconds * 1000:.0f}ms"}
    return nobody_on_call(load_policy(None, overrides=changes).windows.on_call)


def _webhook(url: str, seconds: float, folder: Path) -> object:
    (folder / "url").write_text(url)
    return _told({"kind": "webhook", "url_file": str(folder / "url")}, seconds)


def _status_page(url: str, seconds: float, folder: Path) -> object:
    (folder / "key").write_text("a key of the page")
    key = str(folder / "key")
    return _told({"kind": "statuspage", "page_id": "p", "key_file": key, "url": url}, seconds)


def _told(channel: dict[str, str], seconds: float) -> object:
    rules = Notifications.model_validate(
        {
            "channels": [{"name": "team", **channel}],
            "attempts": 1,
            "timeout": f"{seconds * 1000:.0f}ms",
            "deadline": "10s",
            "ca_file": None,
        }
    )
    message = Message(
        kind=MessageKind.ROLLBACK_FAILED,
        model="m",
        environment="e",
        text="t",
        run_id="1",
        who="w",
        reason="r",
        build="b",
        at=NOW,
    )
    return deliver(message, rules.channels[0], rules, pause=lambda _seconds: True)


CLIENTS: dict[str, Callable[[str, float, Path], object]] = {
    "health": _inference(lambda client, s: client.health(timeout_seconds=s)),
    "models": _inference(lambda client, s: client.models(timeout_seconds=s)),
    "whole": _inference(lambda client, s: client.complete("x", max_tokens=1, timeout_seconds=s)),
    "streamed": _inference(
        lambda client, s: client.chat("x", max_tokens=1, timeout_seconds=s, stream=True)
    ),
    "an observation": _inference(lambda client, s: probe(client, count=2, timeout_seconds=s)),
    "Prometheus": _prometheus,
    "registry": _registry,
    "Hugging Face": _hugging_face,
    "calendar": _calendar,
    "on call": _on_call,
    "webhook": _webhook,
    "status page": _status_page,
}


def outcome(name: str, url: str, seconds: float, folder: Path) -> object:
    """What the client returns, or the expected error that it raises."""
    try:
        return CLIENTS[name](url, seconds, folder)
    except RolloutError as error:
        return error
