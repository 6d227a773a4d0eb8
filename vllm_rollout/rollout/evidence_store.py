"""Evidence in a platform's store, by its digest, and the revisions with passing evidence.

A digest shows that evidence was not changed, and not who made it: where the policy names keys, the
run that makes evidence signs it, and what none of them has signed is no evidence.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from vllm_rollout.model.deployment import Build, Deployment, Revision, RevisionStatus
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.evidence import Evidence, documents, verified
from vllm_rollout.model.text import printable
from vllm_rollout.model.verdict import Outcome
from vllm_rollout.next_command import next_command
from vllm_rollout.platform.reader import StoreReader
from vllm_rollout.platform.writer import Store
from vllm_rollout.policy.signing import EvidenceSigning
from vllm_rollout.rollout.ssh_signature import UnprovedError, name_of_key, sign, verified_key
from vllm_rollout.variables import secret_from

_SHORTEST_PREFIX = 6
_MOST_PASSED = 5
"""Of so many revisions, the newest, the evidence is read to compare a run with."""


PURPOSE = "vllm-rollout-evidence"
"""The namespace of a run's signatures, as ssh-keygen has it."""


def store_evidence(store: Store, evidence: Evidence, key: bytes = b"") -> str:
    """Store the evidence and its gate runs under their digests, and return the evidence's.

    What is stored already is not written again, so evidence that grows costs what is new in it.
    With a private `key` it is signed.

    Raises:
        UsageError: something else is kept in its place.
    """
    digest, (document, runs) = evidence.digest, documents(evidence)
    kept = {_run_key(evidence.model, each): run for each, run in runs.items()}
    kept[_key_of(evidence.model, digest)] = document
    if key:
        signature = sign(key, _statement(evidence.model, digest), PURPOSE)
        kept[_signature_of(evidence.model, digest)] = {"signature": signature}
    for name, value in kept.items():
        known = store.read(name)
        if known is None:
            store.write(name, value, expect=None)
        elif known.value != value:
            raise UsageError(
                f"{name} was changed after it was written", remedy="Restore it from a backup."
            )
    return digest


def stored_evidence(store: StoreReader, model: str, digest: str) -> Evidence:
    """Return the evidence of that digest, which is computed again, as are those of its gate runs.

    Raises:
        UsageError: it or a gate run is gone, was changed, or cannot be read by this version.
    """

    def value(key: str) -> Any:
        entry = store.read(key)
        if entry is None:
            raise UsageError(
                f"{key} is no longer kept",
                remedy=f"Make it again: {next_command('gate-and-promote', model)}",
            )
        return entry.value

    key = _key_of(model, digest)
    evidence = verified(value(key), digest, key, lambda run: value(_run_key(model, run)))
    if evidence.model != model:
        raise UsageError(
            f"{key} is evidence of {evidence.model}, and not of {model}",
            remedy=f"Make new evidence: {next_command('gate-and-promote', model)}",
        )
    return evidence


def key_of_run(rules: EvidenceSigning) -> bytes:
    """Return the private key by which a run signs its evidence; empty where it has none.

    Raises:
        UsageError: the policy names where it is, and it is not there.
    """
    if rules.key_env is None and rules.key_file is None:
        return b""
    return f"{secret_from(rules.key_env, rules.key_file, 'the key of this run')}\n".encode()


def check_key_of_run(rules: EvidenceSigning) -> None:
    """Return if a run may make evidence by this policy.

    Raises:
        UsageError: it has no key by which its evidence would count.
    """
    if not rules.signed_by:
        return
    key = key_of_run(rules)
    if not key:
        raise UnprovedError(
            "evidence must be signed (evidence.signed_by), and this run has no key",
            remedy="Name it in evidence.key_env or evidence.key_file.",
        )
    name_of_key(verified_key(sign(key, b"", PURPOSE), b"", PURPOSE), rules.signed_by)


def unsigned(store: StoreReader, rules: EvidenceSigning, model: str, digest: str) -> str:
    """Return why the evidence is none, as no run has signed it that may; "" if it counts."""
    if not rules.signed_by:
        return ""
    entry = store.read(_signature_of(model, digest))
    if entry is None:
        return "no run has signed it, and the policy asks for that (evidence.signed_by)"
    try:
        signature = str(entry.value["signature"])
        name_of_key(verified_key(signature, _statement(model, digest), PURPOSE), rules.signed_by)
    except (UnprovedError, KeyError, TypeError) as error:
        return f"no run has signed it that may (evidence.signed_by): {error}"
    return ""


def _statement(model: str, digest: str) -> bytes:
    return f"vllm-rollout evidence 1\nevidence: {digest}\nmodel: {model}\n".encode()


def find_evidence(store: StoreReader, model: str, prefix: str) -> Evidence:
    """Return the model's evidence whose digest begins with `prefix`.

    Raises:
        UsageError: there is none, or more than one; the prefix is too short; or as
            `stored_evidence`.
    """
    start = prefix.removeprefix("sha256:").lower()
    if len(start) < _SHORTEST_PREFIX or not set(start) <= set("0123456789abcdef"):
        raise UsageError(
            f"--evidence {prefix!r} is not a digest",
            remedy=f"Give the digest from the report, or at least its first "
            f"{_SHORTEST_PREFIX} digits.",
        )
    keys = store.keys(_key_of(model, start))
    if len(keys) != 1:
        found = f"{len(keys)} digests begin with it" if keys else "no evidence has that digest"
        raise UsageError(
            f"--evidence {prefix}: {found}, of those that are kept of {model}",
            remedy="Give more of it. The one to sign off is printed by: "
            + next_command("gate-and-promote", model),
        )
    return stored_evidence(store, model, f"sha256:{keys[0].rpartition('/')[2]}")


def grown_from(store: StoreReader, model: str, digest: str) -> Iterator[Evidence]:
    """Yield the evidence of that digest, and each that it has grown from.

    Raises: as `stored_evidence`.
    """
    while digest:
        evidence = stored_evidence(store, model, digest)
        yield evidence
        digest = evidence.previous


def _run_key(model: str, digest: str) -> str:
    return f"gate-runs/{model}/{digest.removeprefix('sha256:')}"


def _signature_of(model: str, digest: str) -> str:
    return f"signatures/{model}/{digest.removeprefix('sha256:')}"


def _key_of(model: str, digest: str) -> str:
    return f"evidence/{model}/{digest.removeprefix('sha256:')}"


class PassedRevisionsReader:
    """Revisions that passed their gates, and the digest of the evidence of each."""

    def __init__(self, store: StoreReader) -> None:
        self._store = store

    def evidence_of(self, deployment: Deployment, revision: Revision) -> str | None:
        """Return the digest of the evidence by which `revision` passed; None if it has not."""
        entry = self._store.read(self._key(deployment, revision))
        if entry is None or entry.value["build"] != revision.build.digest:
            return None
        created = entry.value.get("created")  # not noted by earlier versions
        if created and not revision.was_made(datetime.fromisoformat(created)):
            return None  # the release was removed since, and its numbers begin again
        return str(entry.value["evidence"])

    def build_passed(self, deployment: Deployment, build: Build, rules: EvidenceSigning) -> bool:
        """Return whether any revision of `deployment` passed its gates with that build.

        What is noted of a revision says where its evidence is; that is read, and decides, if it is
        signed as `rules` ask.
        """
        keys = self._store.keys(f"passed/{deployment.release}/")
        entries = (self._store.read(key) for key in reversed(keys))
        return any(
            entry is not None
            and entry.value["build"] == build.digest
            and self._is_of(str(entry.value["evidence"]), deployment, build, rules)
            for entry in entries
        )

    def _is_of(
        self, digest: str, deployment: Deployment, build: Build, rules: EvidenceSigning
    ) -> bool:
        """Return whether that evidence has passing gates of `deployment` and that build."""
        if unsigned(self._store, rules, deployment.model, digest):
            return False
        try:
            runs = stored_evidence(self._store, deployment.model, digest).runs
        except UsageError:
            return False
        return any(
            (run.deployment.environment, run.build) == (deployment.environment, build)
            and run.outcome is Outcome.PASS
            for run in runs
        )

    def passing_evidence(
        self, deployment: Deployment, rules: EvidenceSigning
    ) -> Iterator[Evidence]:
        """Yield the evidence by which the newest revisions of `deployment` passed, the newest
        first; what is gone, was changed, or is not signed as `rules` ask is none."""
        keys = self._store.keys(f"passed/{deployment.release}/")
        entries = filter(None, map(self._store.read, keys[: -_MOST_PASSED - 1 : -1]))
        for digest in dict.fromkeys(str(entry.value["evidence"]) for entry in entries):
            if not unsigned(self._store, rules, deployment.model, digest):
                with suppress(UsageError):
                    yield stored_evidence(self._store, deployment.model, digest)

    def good_revision(
        self, deployment: Deployment, history: Sequence[Revision], *, also_withdrawn: bool = False
    ) -> Revision | None:
        """Return the revision to roll back to: the newest complete one with passing evidence.

        Where none has any (the release is older than this suite), the newest complete revision
        that was deployed. A build that was rolled back is none of them, unless `also_withdrawn`
        and there is no other. None when there is no such revision.
        """
        withdrawn = self._store.read(_withdrawn(deployment))
        served = [
            revision
            for revision in reversed(history)
            if revision.complete
            and revision.status in (RevisionStatus.DEPLOYED, RevisionStatus.SUPERSEDED)
        ]
        standing = [r for r in served if not withdrawn or r.build.digest not in withdrawn.value]
        for revision in standing:
            if self.evidence_of(deployment, revision) is not None:
                return revision
        return next(iter(standing or (served if also_withdrawn else ())), None)

    @staticmethod
    def _key(deployment: Deployment, revision: Revision) -> str:
        return f"passed/{deployment.release}/{revision.number:08d}"


class PassedRevisions(PassedRevisionsReader):
    """Keeps which revisions passed their gates, in the platform's store."""

    _store: Store

    def __init__(self, store: Store) -> None:
        super().__init__(store)

    def passed(self, deployment: Deployment, revision: Revision, evidence_digest: str) -> None:
        """Note that `revision` passed its gates, by that evidence."""
        key = self._key(deployment, revision)
        known = self._store.read(key)
        value = _passed(revision, evidence_digest)
        self._store.write(key, value, expect=known.version if known else None)
        withdrawn = self._store.read(_withdrawn(deployment))
        if withdrawn is not None and revision.build.digest in withdrawn.value:
            builds = {k: v for k, v in withdrawn.value.items() if k != revision.build.digest}
            self._store.write(_withdrawn(deployment), builds, expect=withdrawn.version)

    def conclude(self, deployment: Deployment, revision: Revision, evidence_digest: str) -> None:
        """Name the run's last evidence, with its end, in place of that by which `revision` passed.

        That one has grown from it. A build that was rolled back stays withdrawn.
        """
        key = self._key(deployment, revision)
        known = self._store.read(key)
        value = _passed(revision, evidence_digest)
        if known is not None and known.value["build"] == value["build"] and known.value != value:
            self._store.write(key, value, expect=known.version)

    def withdraw(self, deployment: Deployment, build: Build, why: str) -> None:
        """Note that `build` was rolled back: nothing returns to it, whatever it passed before."""
        known = self._store.read(_withdrawn(deployment))
        builds = {**(known.value if known else {}), build.digest: printable(why)}
        expect = known.version if known else None
        self._store.write(_withdrawn(deployment), builds, expect=expect)


def _passed(revision: Revision, evidence_digest: str) -> dict[str, str]:
    return {
        "build": revision.build.digest,
        "created": revision.created.isoformat(),
        "evidence": evidence_digest,
    }


def _withdrawn(deployment: Deployment) -> str:
    return f"withdrawn/{deployment.release}"
