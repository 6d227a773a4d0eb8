"""The list of models that a server says it serves."""

from typing import Any

import msgspec

from vllm_rollout.http_client import Failure, HttpAnswer, HttpError
from vllm_rollout.model.observation import ServedModel, ServedModels
from vllm_rollout.model.text import NOTHING, shown
from vllm_rollout.observe.answers import page_in

_LONGEST_CONTEXT = 1 << 53


class _Listed(msgspec.Struct):
    """An entry of `/v1/models`; gateways leave all but the id out."""

    id: str
    root: Any = None
    parent: Any = None
    max_model_len: Any = None


class _List(msgspec.Struct):
    data: list[_Listed]


def served_models(answer: HttpAnswer) -> ServedModels:
    """Read the answer of `/v1/models`.

    Raises:
        HttpError: it is no such list.
    """
    if page := page_in(answer.body):
        raise HttpError(Failure.UNREADABLE, page, status=answer.status)
    listed = answer.json(_List).data
    return ServedModels(status=answer.status, models=tuple(_served(each) for each in listed))


def _served(listed: _Listed) -> ServedModel:
    length = listed.max_model_len
    # A Python int may be any size, which neither JSON elsewhere nor a float can hold.
    known = type(length) is int and 0 < length < _LONGEST_CONTEXT
    return ServedModel(
        name=shown(listed.id),
        root=shown(listed.root) if isinstance(listed.root, str) else NOTHING,
        parent=shown(listed.parent) if isinstance(listed.parent, str) else NOTHING,
        max_model_len=length if known else None,
    )
