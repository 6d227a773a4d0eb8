"""Access to a model on Hugging Face: whether it exists and the pods may read it, by its API."""

import os
import re
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from vllm_rollout.http_client import HttpAnswer, HttpClient, HttpError
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.preflight_facts import switch_off
from vllm_rollout.model.text import shown

_ENDPOINT = "https://huggingface.co"
_TIMEOUT_SECONDS = 15.0
_MAX_BYTES = 4 * 1024 * 1024
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_MODEL_ID = re.compile(rf"{_PART}(?:/{_PART})?")
_REVISION = re.compile(r"[A-Za-z0-9._/-]+")
_SWITCHED_ON = ("1", "ON", "YES", "TRUE")
_NO_ACCESS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAccess:
    """Commit of the revision, or why the model cannot be read."""

    commit: str = ""
    problem: str = ""


def is_model_id(text: str) -> bool:
    """Return True if `text` has the form of a model's id, `organisation/name` or `name`."""
    return bool(_MODEL_ID.fullmatch(text)) and ".." not in text and "--" not in text


def is_offline() -> bool:
    """Return True if this process may ask Hugging Face nothing (HF_HUB_OFFLINE)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _SWITCHED_ON


def model_access(model: str, *, revision: str = "", token: str = "") -> ModelAccess:
    """Ask whether `model` may be read at `revision` (default: its main branch).

    Two questions: the auth-check that client libraries use, because a gated model's page can be
    seen by all, and the revision's commit. `HF_ENDPOINT` names a mirror.

    Raises:
        UnreachableError: no answer, or none that can be used.
    """
    if not is_model_id(model) or (revision and not _REVISION.fullmatch(revision)):
        return ModelAccess(problem=f"{model}@{revision or 'main'} is no model id and revision")
    endpoint = os.environ.get("HF_ENDPOINT", _ENDPOINT).rstrip("/")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with HttpClient(max_bytes=_MAX_BYTES, headers=headers, proxy=True, redirects=True) as client:
        about = f"{endpoint}/api/models/{model}"
        answer = _get(client, f"{about}/auth-check")
        if answer.status in _NO_ACCESS:
            return ModelAccess(problem=_refused(model, answer, with_token=bool(token)))
        answer = _get(client, f"{about}/revision/{revision.replace('/', '%2F') or 'main'}")
    if answer.status == HTTPStatus.NOT_FOUND:
        return ModelAccess(problem=f"{model} has no revision {revision or 'main'}")
    if answer.status in _NO_ACCESS:
        return ModelAccess(problem=_refused(model, answer, with_token=bool(token)))
    try:
        return ModelAccess(commit=shown(answer.json(_Revision).sha))
    except HttpError as error:
        raise _unreachable(endpoint, "its answer names no commit") from error


class _Revision(msgspec.Struct):
    sha: str


def _get(client: HttpClient, url: str) -> HttpAnswer:
    try:
        answer = client.get(url, timeout_seconds=_TIMEOUT_SECONDS)
    except HttpError as error:
        raise _unreachable(url, error.reason) from error
    if answer.status != HTTPStatus.OK and answer.status not in _NO_ACCESS:
        raise _unreachable(url, f"it answers {answer.status}")
    return answer


def _refused(model: str, answer: HttpAnswer, *, with_token: bool) -> str:
    code = shown(answer.header("X-Error-Code"))
    whose = "the pods' token has no access" if with_token else "the pods have no token"
    if code == "GatedRepo":
        return f"{model} is gated, and {whose}"
    if code == "RepoNotFound" or answer.status == HTTPStatus.NOT_FOUND:
        return f"there is no {model}, or it is private and {whose}"
    return f"{model}: it answers {answer.status} {code}".rstrip() + f", and {whose}"


def _unreachable(address: str, reason: str) -> UnreachableError:
    return UnreachableError(
        f"Hugging Face cannot be asked at {address}: {reason}",
        address=address,
        remedy="Check the network, or name a mirror in HF_ENDPOINT; without either, switch the "
        f"check off with {switch_off('model')} in the policy.",
    )
