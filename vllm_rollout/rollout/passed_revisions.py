"""Revisions with passing evidence: those a rollback may return to."""

from collections.abc import Sequence

from vllm_rollout.model.deployment import Build, Deployment, Revision, RevisionStatus
from vllm_rollout.model.evidence import Evidence, as_json, evidence_key
from vllm_rollout.platform.reader import StoreReader
from vllm_rollout.platform.writer import Store


class PassedRevisionsReader:
    """Revisions that passed their gates, and the digest of the evidence of each."""

    def __init__(self, store: StoreReader) -> None:
        self._store = store

    def evidence_of(self, deployment: Deployment, revision: Revision) -> str | None:
        """Return the digest of the evidence by which `revision` passed; None if it has not."""
        entry = self._store.read(self._key(deployment, revision))
        if entry is None or entry.value["build"] != revision.build.digest:
            return None
        return str(entry.value["evidence"])

    def build_passed(self, deployment: Deployment, build: Build) -> bool:
        """Return whether any revision of `deployment` passed its gates with that build."""
        keys = self._store.keys(f"passed/{deployment.release}/")
        entries = (self._store.read(key) for key in reversed(keys))
        return any(entry is not None and entry.value["build"] == build.digest for entry in entries)

    def good_revision(self, deployment: Deployment, history: Sequence[Revision]) -> Revision | None:
        """Return the revision to roll back to: the newest complete one with passing evidence.

        Where none has any (the release is older than this suite), the newest complete revision
        that was deployed; builds that were rolled back only where there is no other. None when the
        release has never served.
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
        return next(iter(standing or served), None)

    @staticmethod
    def _key(deployment: Deployment, revision: Revision) -> str:
        return f"passed/{deployment.release}/{revision.number:08d}"


class PassedRevisions(PassedRevisionsReader):
    """Keeps evidence in the platform's store, by digest, and the revisions that passed by it."""

    _store: Store

    def __init__(self, store: Store) -> None:
        super().__init__(store)

    def keep(self, evidence: Evidence) -> str:
        """Store the evidence under its digest; storing it again changes nothing."""
        key = evidence_key(evidence.model, evidence.digest)
        if self._store.read(key) is None:
            self._store.write(key, as_json(evidence), expect=None)
        return evidence.digest

    def passed(self, deployment: Deployment, revision: Revision, evidence_digest: str) -> None:
        """Note that `revision` passed its gates, by that evidence."""
        key = self._key(deployment, revision)
        known = self._store.read(key)
        self._store.write(
            key,
            {"build": revision.build.digest, "evidence": evidence_digest},
            expect=known.version if known else None,
        )
        withdrawn = self._store.read(_withdrawn(deployment))
        if withdrawn is not None and revision.build.digest in withdrawn.value:
            builds = {k: v for k, v in withdrawn.value.items() if k != revision.build.digest}
            self._store.write(_withdrawn(deployment), builds, expect=withdrawn.version)

    def withdraw(self, deployment: Deployment, build: Build, why: str) -> None:
        """Note that `build` was rolled back: nothing returns to it, whatever it passed before."""
        known = self._store.read(_withdrawn(deployment))
        builds = {**known.value, build.digest: why} if known else {build.digest: why}
        expect = known.version if known else None
        self._store.write(_withdrawn(deployment), builds, expect=expect)


def _withdrawn(deployment: Deployment) -> str:
    return f"withdrawn/{deployment.release}"
