"""The note on a merge request of GitLab: posted once, and updated in place by later runs.

All of it has one deadline, and nothing is posted where it is not known what is there.
"""

import os
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from vllm_rollout.http_client import HttpAnswer, HttpClient, monotonic
from vllm_rollout.model.errors import RolloutError, UnreachableError
from vllm_rollout.model.text import public_address
from vllm_rollout.variables import secret_from

TOKEN = "VLLM_ROLLOUT_GITLAB_TOKEN"  # noqa: S105 - the name of a variable
DEADLINE_SECONDS = 10.0
_MOST_BYTES = 8_000_000
_ON_A_PAGE = 100
_MOST_PAGES = 20
_REFUSED = (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)


def post_note(about: str, text: str) -> None:
    """Post `text` on the pipeline's merge request, or update the note that is `about` the same.

    Without a token, or outside of a merge request, there is nothing to do.

    Raises:
        RolloutError, HttpError: it is not known to be there.
    """
    where = _merge_request()
    if not where or not os.environ.get(TOKEN):
        return
    notes = _Notes(where, secret_from(TOKEN, None, "the token"))
    # Two jobs of a pipeline have a note each.
    marker = f"<!-- vllm-rollout {quote(os.environ.get('CI_JOB_NAME', ''))} {quote(about)} -->"
    body = f"{marker}\n{text}"
    with notes.client:
        # A note of somebody else's that has the marker cannot be updated, and is left as it is.
        if not any(notes.update(number, body) for number in notes.beginning_with(marker)):
            notes.create(body)


def _merge_request() -> str:
    """The API's address of the notes of the pipeline's merge request; empty without one."""
    get = os.environ.get
    api, number = get("CI_API_V4_URL", ""), get("CI_MERGE_REQUEST_IID", "")
    project = get("CI_MERGE_REQUEST_PROJECT_ID") or get("CI_PROJECT_ID", "")
    if not number and (first := get("CI_OPEN_MERGE_REQUESTS", "").split(",")[0]):
        project, _, number = first.rpartition("!")  # a branch's pipeline
    if not api.startswith(("http://", "https://")) or not project or not number.isdecimal():
        return ""
    return f"{api}/projects/{quote(project, safe='')}/merge_requests/{number}/notes"


class _Notes:
    """The notes of one merge request, asked within one deadline."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._until = url, monotonic() + DEADLINE_SECONDS
        self.client = HttpClient(
            max_bytes=_MOST_BYTES, headers={"PRIVATE-TOKEN": token}, proxy=True
        )

    def beginning_with(self, marker: str) -> Iterator[int]:
        """Numbers of the notes that begin so, those changed last first.

        Raises:
            RolloutError, HttpError: the notes could not be read to their end.
        """
        for page in range(1, _MOST_PAGES + 1):
            query = {"per_page": _ON_A_PAGE, "page": page, "order_by": "updated_at", "sort": "desc"}
            answer = self._ask("GET", self._url, params=query)
            if answer.status != HTTPStatus.OK:
                raise self._refused(answer)
            notes = answer.json(list[dict[str, Any]])
            yield from (int(n["id"]) for n in notes if str(n.get("body")).startswith(marker))
            if len(notes) < _ON_A_PAGE:
                return
        raise RolloutError(f"the merge request has more than {_ON_A_PAGE * _MOST_PAGES} notes")

    def update(self, number: int, body: str) -> bool:
        """Change a note; False if it is another's, or gone."""
        answer = self._ask("PUT", f"{self._url}/{number}", json={"body": body})
        if answer.status in _REFUSED:
            return False
        return self._done(answer)

    def create(self, body: str) -> None:
        """Post a note."""
        self._done(self._ask("POST", self._url, json={"body": body}))

    def _ask(self, method: str, url: str, **content: Any) -> HttpAnswer:
        left = self._until - monotonic()
        if left <= 0:
            raise UnreachableError("GitLab did not answer in time", address=public_address(url))
        return self.client.request(method, url, timeout_seconds=left, **content)

    def _done(self, answer: HttpAnswer) -> bool:
        if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
            raise self._refused(answer)
        return True

    def _refused(self, answer: HttpAnswer) -> RolloutError:
        return RolloutError(
            f"{public_address(self._url)} answered HTTP {answer.status}: the token of {TOKEN} "
            "needs the scope `api` and the role Developer"
        )
