"""Whose word a sign-off is: every copied, altered or invented proof is refused by name."""

import json
from base64 import urlsafe_b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from support import signing
from support.world import (
    DEVELOPMENT,
    MODEL,
    RAMP,
    SIGN_OFF,
    STAGING,
    World,
    decide,
    sign_evidence,
    word_of_qa,
)

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import canonical_digest
from vllm_rollout.model.errors import ExitCode, PolicyError, UnreachableError, UsageError
from vllm_rollout.model.evidence import Evidence, documents
from vllm_rollout.policy import Policy, load_policy
from vllm_rollout.policy.signing import EvidenceSigning
from vllm_rollout.rollout.audit_log import AuditLog, BrokenChainError, Decision, DecisionKind
from vllm_rollout.rollout.engine import gate_and_promote
from vllm_rollout.rollout.evidence_store import (
    PassedRevisionsReader,
    store_evidence,
    stored_evidence,
    unsigned,
)
from vllm_rollout.rollout.identity import PURPOSE, audience, proofs, statement, time_of
from vllm_rollout.rollout.model_status import model_status
from vllm_rollout.rollout.sign_offs import SignOff, SignOffs
from vllm_rollout.rollout.ssh_signature import fingerprint, name_of_key, sign, verified_key

AT = datetime(2026, 11, 18, 10, 0, 0, 250, tzinfo=UTC)
GRACE, MALLORY = "grace of qa, for tests and more!", "mallory"
FINGERPRINT = "SHA256:tjZ6ravZn5cWpbio9a83VRukN1mqRW1T7IZscD0IYBU"
WHO = f"Grace of QA (as {FINGERPRINT})"
BY_KEY: dict[str, Any] = {"identity": "key", "keys": {"Grace of QA": signing.public_line(GRACE)}}
RECORDED = """-----BEGIN SSH SIGNATURE-----
U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAg1tvWJxR6zeBcqgXNaxlgSSfbQC
B0u29ZLs14E8QBUEsAAAAVdmxsbS1yb2xsb3V0LXNpZ24tb2ZmAAAAAAAAAAZzaGE1MTIA
AABTAAAAC3NzaC1lZDI1NTE5AAAAQNEmChUYcUCX5gFmmQp23UnfxP2MN2elaXDilVCvns
l2IlDjL9+YSEVVn31gXdxr9Bjm9SKfyA+Javg0wrCTwA4=
-----END SSH SIGNATURE-----
"""
"""By `ssh-keygen -Y sign -n vllm-rollout-sign-off` of OpenSSH 9.2."""
RECORDED_OF = f"vllm-rollout sign-off 1\nevidence: sha256:{'0' * 64}\n".encode()


def policy_with(rules: dict[str, Any]) -> Policy:
    overrides = {f"{SIGN_OFF}.{name}": value for name, value in rules.items()}
    return load_policy(None, overrides=overrides)


def word(number: int = 1, *, owner: str = GRACE, **changes: Any) -> Decision:
    """A sign-off, signed by its owner."""
    unsigned = Decision(
        number=number, kind=DecisionKind.SIGN_OFF, model=MODEL, environment="staging",
        at=AT, who=WHO, why="", evidence="sha256:" + "5" * 64, build="sha256:b", previous="",
    )  # fmt: skip
    unsigned = replace(unsigned, **changes)
    signature = sign(signing.private_file(owner), statement(unsigned), PURPOSE)
    return replace(unsigned, signature=signature)


def problem(decisions: list[Decision], policy: Policy) -> str:
    """What is wrong with the last of them."""
    return proofs(decisions, policy)[decisions[-1].number].problem


def test_a_signature_is_as_ssh_keygen_makes_it_and_reads_what_it_made() -> None:
    assert sign(signing.private_file(GRACE), RECORDED_OF, PURPOSE) == RECORDED
    key = verified_key(RECORDED, RECORDED_OF, PURPOSE)
    assert fingerprint(key) == FINGERPRINT
    assert name_of_key(key, policy_with(BY_KEY).environments["staging"].sign_off.keys)  # type: ignore[union-attr]


OTHER = "is of another statement than this, or was changed"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evidence": "sha256:" + "6" * 64}, OTHER),
        ({"model": "llama-2-70b"}, OTHER),
        ({"kind": DecisionKind.REJECTION}, OTHER),
        ({"at": AT + timedelta(hours=1)}, OTHER),
        ({"why": "all answers read"}, OTHER),
        ({"who": "Ada (as ada)"}, f"it is signed by {WHO}, and not by Ada (as ada)"),
        ({"signature": ""}, "it is by name alone, and the policy asks for the signature of a key"),
        ({"signature": RECORDED}, OTHER),
        ({"signature": RECORDED[:99]}, "is not an SSH signature by an Ed25519 key"),
        ({"signature": "-----BEGIN"}, "is not an SSH signature by an Ed25519 key"),
    ],
)
def test_a_signature_proves_the_one_decision_that_it_was_given_for(
    changes: dict[str, Any], said: str
) -> None:
    policy = policy_with(BY_KEY)
    assert proofs([word()], policy)[1].how == f"key {FINGERPRINT}"
    assert said in problem([replace(word(), **changes)], policy)


def test_a_signature_of_another_environment_key_purpose_or_time_proves_nothing() -> None:
    policy = policy_with(BY_KEY)
    elsewhere = word(environment="development")
    assert OTHER in problem([replace(elsewhere, environment="staging")], policy)
    assert "which the policy does not name" in problem([word(owner=MALLORY)], policy)
    other = sign(signing.private_file(GRACE), statement(word()), "git")
    assert f"for another purpose than {PURPOSE}" in problem(
        [replace(word(), signature=other)], policy
    )
    rejected = word(2, kind=DecisionKind.REJECTION, at=AT + timedelta(hours=1))
    found = proofs([word(1), rejected, word(3)], policy)
    assert [each.problem for each in found.values()][:2] == ["", ""]
    assert found[3].problem == f"it is a replay: {rejected} was signed then or later"


def test_every_flipped_byte_of_a_signature_is_refused() -> None:
    lines = RECORDED.splitlines()
    for row in range(1, len(lines) - 1):
        for column, letter in enumerate(lines[row]):
            flipped = [*lines]
            other = "A" if letter != "A" else "B"
            flipped[row] = f"{lines[row][:column]}{other}{lines[row][column + 1 :]}"
            with pytest.raises(UsageError):
                name_of_key(
                    verified_key("\n".join(flipped), RECORDED_OF, PURPOSE),
                    {"Grace of QA": signing.public_line(GRACE)},
                )


def test_a_statement_names_its_time_and_a_key_with_a_passphrase_is_for_ssh_keygen() -> None:
    assert time_of(statement(word())) == AT
    with pytest.raises(UsageError, match="no statement"):
        time_of(b"at: noon\n")
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
    )

    locked = signing.key_of(GRACE).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    with pytest.raises(UsageError, match="passphrase") as refused:
        sign(locked, b"", PURPOSE)
    assert "ssh-keygen" in refused.value.remedy
    with pytest.raises(UsageError, match="cannot be read"):
        sign(b"no key", b"", PURPOSE)


def by_token(folder: Path, **jwks: Any) -> dict[str, Any]:
    return {
        "identity": "oidc",
        "oidc": {
            "issuer": signing.ISSUER, "audience": "vllm-rollout",
            "subjects": ["repo:acme/llm:environment:*"],
            "jwks": str(signing.jwks(folder, **jwks)), "token_env": "CI_TOKEN",
        },
    }  # fmt: skip


def given(policy: Policy, number: int = 1, *, issued: datetime = AT, **claims: Any) -> Decision:
    """A sign-off by the CI's token."""
    rules = policy.environments["staging"].sign_off
    assert rules is not None
    assert rules.oidc is not None
    decision = word(number, who=f"grace (as {signing.SUBJECT})")
    wanted = audience(rules.oidc, decision)
    return replace(decision, signature=signing.token(wanted, issued, **claims))


def forged(header: dict[str, Any]) -> str:
    """A token whose header says by what to verify it, with an empty signature."""
    parts = [json.dumps(part).encode() for part in (header, {"iss": signing.ISSUER})]
    return ".".join(urlsafe_b64encode(each).decode().rstrip("=") for each in (*parts, b""))


def test_a_token_is_bound_to_one_decision_and_good_when_it_was_given(tmp_path: Path) -> None:
    policy = policy_with(by_token(tmp_path))
    assert proofs([given(policy)], policy)[1].how == f"token of {signing.SUBJECT}"

    first, hour = given(policy), timedelta(hours=1)
    digest = "sha256:" + "6" * 64
    table = [
        (replace(first, evidence=digest), "is not for this decision: its aud is not vllm-rollout/"),
        (replace(first, model="llama-2-70b"), "is not for this decision"),
        (replace(first, kind=DecisionKind.REJECTION), "is not for this decision"),
        (replace(first, at=AT + hour), "it has expired, or is not valid yet"),
        (replace(first, at=AT - hour), "it has expired, or is not valid yet"),
        (replace(first, who="ada (as ada)"), "and not by ada (as ada)"),
        (replace(first, why="read"), "it has a note, which no token holds"),
        (replace(first, signature=""), "the policy asks for a CI's token"),
        (replace(first, signature="a.b.c"), "is no JSON web token"),
        (replace(first, signature="x" * 20_000), "too long"),
        (replace(first, signature=forged({"alg": "none", "kid": "one"})), "the algorithm none"),
        (replace(first, signature=forged({"alg": "HS256", "kid": "one"})), "the algorithm HS256"),
        (replace(first, signature=forged({"alg": "RS256", "kid": "one"})), "is for EdDSA"),
        (replace(first, signature=forged({"kid": "one"})), "the algorithm None"),
        (replace(first, signature=first.signature[:-4] + "AAAA"), "does not hold"),
        (given(policy, kid="two"), "signed by the key two, which its issuer does not have"),
        (given(policy, owner="mallory"), "its token does not hold"),
        (given(policy, iss="https://evil.example"), "is not of the issuer"),
        (given(policy, aud="vllm-rollout"), "is not for this decision"),
        (given(policy, sub="repo:evil/llm:environment:qa"), "whom the policy does not name"),
        (given(policy, sub="repo:acme/llm2:environment:qa"), "whom the policy does not name"),
        (given(policy, exp="soon"), "has times that cannot be read"),
        (given(policy, iat=float("nan")), "has times that cannot be read"),
    ]
    for decision, said in table:
        assert said in problem([decision], policy), said
    again = [first, replace(given(policy, 2), at=AT + timedelta(seconds=30))]
    assert "it is a replay" in problem(again, policy)


def test_a_shared_secret_in_an_issuers_keys_verifies_nothing(tmp_path: Path) -> None:
    policy = policy_with(by_token(tmp_path))
    public = json.loads((tmp_path / "jwks.json").read_text())["keys"][0]["x"]
    secret = {"kty": "oct", "k": public, "kid": "one", "alg": "HS256"}
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [secret]}))
    key = jwt.PyJWK(secret).key
    confused = jwt.encode({"iss": signing.ISSUER}, key, "HS256", {"kid": "one"})
    assert "the algorithm HS256" in problem([replace(given(policy), signature=confused)], policy)
    assert "its issuer does not have" in problem([given(policy)], policy)
    for broken in ("", "[]", "{}", '{"keys": []}', '{"keys": 1}'):
        (tmp_path / "jwks.json").write_text(broken)
        with pytest.raises(UnreachableError, match="no set of keys"):
            problem([given(policy)], policy)
    (tmp_path / "jwks.json").unlink()
    with pytest.raises(UnreachableError, match="cannot be read"):
        problem([given(policy)], policy)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"identity": "key"}, "no key is named"),
        ({"identity": "oidc"}, "oidc is off"),
        ({"keys": {"Ada": "ssh-rsa AAAA"}}, "an Ed25519 public key"),
        ({"keys": {"Ada": "-----BEGIN OPENSSH PRIVATE KEY-----"}}, "an Ed25519 public key"),
        ({"keys": dict.fromkeys(("Ada", "Eve"), signing.public_line("ada"))}, "more than once"),
        ({"oidc.subjects": ["repo:*"]}, "the owner and a / before the first"),
        ({"oidc.jwks": "http://keys.example/"}, "https URL or a file"),
        ({"oidc.token_file": "/run/token"}, "and not both"),
    ],
)  # fmt: skip
def test_a_policy_that_lets_anybody_sign_is_refused(
    rules: dict[str, Any], said: str, tmp_path: Path
) -> None:
    oidc = by_token(tmp_path)["oidc"]
    for name, value in rules.items():
        if name.startswith("oidc."):
            rules = {"oidc": {**oidc, name[5:]: value}}
    with pytest.raises(PolicyError) as refused:
        policy_with(rules)
    assert said in str(refused.value)
    assert "PRIVATE" not in str(refused.value)


def signed(world: World, evidence: Evidence, *, approved: bool = True) -> SignOff:
    """Grace's word about the evidence of what staging runs now, signed by her key."""
    sign_off = word_of_qa(world, evidence, approved=approved, user=FINGERPRINT)
    text = statement(sign_off.as_decision(MODEL))
    return replace(sign_off, signature=sign(signing.private_file(GRACE), text, PURPOSE))


def test_only_a_proved_sign_off_promotes_and_it_is_told_what_proved_it(world: World) -> None:
    world.overrides[SIGN_OFF] = {"valid": "48h", **BY_KEY}
    first = gate_and_promote(world.tools())
    assert "--key FILE" in first.conclusion
    store = SignOffs(world.platform.store, MODEL)

    def refused(*said: str) -> Evidence:
        ended = gate_and_promote(world.tools())
        assert ended.exit_code in (ExitCode.INCONCLUSIVE, ExitCode.GATE_FAILED), ended.conclusion
        assert world.platform.calls == []
        text = ended.conclusion + "".join(f"{step.title}: {step.detail}" for step in ended.steps)
        for each in said:
            assert each in text
        return ended

    decide(world, first)  # written by somebody who may write, in her name
    refused("a sign-off does not count", "by name alone")
    honest = signed(world, first)
    rejection = signed(world, first, approved=False)
    store.add(replace(rejection, approved=True), "run")
    refused("is of another statement")
    store.add(rejection, "run")
    store.add(honest, "run")
    refused("it is a replay", "rejected by Grace of QA")

    world.clock.sleep(timedelta(minutes=1))
    store.add(signed(world, first), "run")
    policy = world.tools().run.policy
    status = model_status(world.platform, policy, MODEL, world.clock.now())
    by = f"signed off by Grace of QA (key {FINGERPRINT})"
    assert status.environments[1].sign_off.startswith(by)
    promoted = gate_and_promote(world.tools())
    assert promoted.exit_code == ExitCode.OK, promoted.conclusion
    assert promoted.sign_off.startswith(by)
    assert world.platform.calls == RAMP
    assert AuditLog(world.platform.store).verify(MODEL) == []


def test_evidence_that_no_run_has_signed_is_none_where_the_policy_asks(
    world: World,
) -> None:
    del world.overrides[SIGN_OFF]
    world.overrides["evidence.signed_by"] = {"gates in CI": signing.public_line("ci")}
    unready = gate_and_promote(world.tools())
    assert "has no passing evidence of development" in unready.conclusion
    rules = EvidenceSigning(signed_by={"ci": signing.public_line("ci")})
    store, revision = world.platform.store, world.platform.history(STAGING)[-1]
    old = PassedRevisionsReader(store)
    sign_evidence(world)
    assert old.build_passed(DEVELOPMENT, revision.build, rules)
    key_file = world.overrides.pop("evidence.key_file")
    assert "this run has no key" in gate_and_promote(world.tools()).conclusion
    world.overrides["evidence.key_file"] = key_file
    pending = gate_and_promote(world.tools())
    assert pending.exit_code == ExitCode.INCONCLUSIVE, pending.conclusion
    assert unsigned(store, rules, MODEL, pending.digest) == ""

    world.gates.outcomes["staging"] = Outcome.FAIL  # what follows was never gated
    invented = replace(pending, run_id="of nobody")
    store_evidence(store, invented, signing.private_file(MALLORY))
    decide(world, invented)
    refused = gate_and_promote(world.tools())
    assert "which the policy does not name" in str(refused.steps)
    mallory = store.entries.pop(f"signatures/{MODEL}/{invented.digest[7:]}")
    assert "no run has signed it, and the policy" in str(gate_and_promote(world.tools()).steps)
    copied = store.entries[f"signatures/{MODEL}/{pending.digest[7:]}"]
    store.entries[mallory.key] = replace(copied, key=mallory.key)
    assert "is of another statement" in str(gate_and_promote(world.tools()).steps)
    assert world.platform.calls == []

    decide(world, pending)
    del world.gates.outcomes["staging"]
    assert gate_and_promote(world.tools()).exit_code == ExitCode.OK


def test_what_was_decided_about_another_model_is_none_of_this_ones(world: World) -> None:
    world.overrides[SIGN_OFF] = {"valid": "48h", **BY_KEY}
    pending = gate_and_promote(world.tools())
    store, other = world.platform.store, f"{MODEL}-chat"
    SignOffs(store, MODEL).add(signed(world, pending), "run")
    (word,) = (d for d in AuditLog(store).of(MODEL) if d.kind is DecisionKind.SIGN_OFF)
    moved = {"decisions": f"{word.number:08d}", "evidence": pending.digest[7:]}
    run = next(iter(documents(pending)[1]))
    for kind, name in {**moved, "gate-runs": run[7:]}.items():
        store.entries[f"{kind}/{other}/{name}"] = store.entries[f"{kind}/{MODEL}/{name}"]
    entry = store.entries.pop(f"decisions/{other}/{word.number:08d}")
    alone = entry.value["decision"] | {"number": 1, "previous": ""}
    digest = canonical_digest(alone)
    value = {"decision": alone, "digest": digest}
    store.write(f"decisions/{other}/00000001", value, expect=None)
    store.write(f"decided/{other}", {"number": 1, "digest": digest}, expect=None)

    (wrong,) = AuditLog(store).verify(other)
    assert f"is about {MODEL}, and not about {other}" in wrong
    with pytest.raises(BrokenChainError, match="and not about"):
        AuditLog(store).whole(other)
    with pytest.raises(UsageError, match=f"is evidence of {MODEL}, and not of {other}"):
        stored_evidence(store, other, pending.digest)
