"""Keys and tokens that may sign: public keys by name, and the tokens of a CI system."""

from base64 import b64decode
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from vllm_rollout.model.text import one_line
from vllm_rollout.policy.fields import Block, MayBeOff, Text, VariableName, broken_rule, once_each

ED25519 = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"
"""What stands before the 32 bytes of an Ed25519 key in OpenSSH's format."""


def _public_key(value: str) -> str:
    kind, _, rest = value.strip().partition(" ")
    text = rest.split(" ")[0]
    try:
        blob = b64decode(text, validate=True)
    except ValueError:
        blob = b""
    if kind != "ssh-ed25519" or not blob.startswith(ED25519) or len(blob) != len(ED25519) + 32:
        # The value is kept out of the message: somebody may have pasted the private key.
        raise broken_rule("must be an Ed25519 public key, as a .pub file has it: ssh-ed25519 AAAA…")
    return f"{kind} {text}"


def _shown_as_written(value: str) -> str:
    if one_line(value) != value:
        raise broken_rule("a name is one line of printable text")
    return value


def _of_one_each(keys: dict[str, str]) -> dict[str, str]:
    once_each(tuple(keys.values()))
    return keys


PublicKey = Annotated[str, AfterValidator(_public_key)]
"""An Ed25519 public key, as in a `.pub` file; its comment is left out."""

PersonName = Annotated[str, Field(min_length=1), AfterValidator(_shown_as_written)]

Keys = Annotated[dict[PersonName, PublicKey], AfterValidator(_of_one_each)]
"""Public keys by the name of their owner."""


def _subject(value: str) -> str:
    start, wildcard, _ = value.partition("*")
    if wildcard and "/" not in start:
        raise broken_rule(
            f"{value!r} leaves open whose it is: write the owner and a / before the first *"
        )
    return value


def _jwks(value: str) -> str:
    if "://" in value and not value.startswith("https://"):
        raise broken_rule("must be an https URL or a file: whoever can change the keys can sign")
    return value


class Oidc(Block):
    """Tokens of a CI system (OpenID Connect) that are a word, each for one decision."""

    issuer: Text
    """The `iss` of a token: https://token.actions.githubusercontent.com, your GitLab's URL."""
    audience: Text
    """What the `aud` of a token begins with; the decision follows, as sign-off prints it."""
    subjects: Annotated[tuple[Annotated[Text, AfterValidator(_subject)], ...], Field(min_length=1)]
    """The `sub` of a token is one of these, in which * stands for anything."""
    jwks: Annotated[Text, AfterValidator(_jwks)]
    """The issuer's public keys (JWKS): an https URL, or a file."""
    token_env: VariableName | None = None
    """Environment variable that holds the token of who signs."""
    token_file: Text | None = None
    """File that holds it instead."""

    @model_validator(mode="after")
    def _has_a_token(self) -> Self:
        if (self.token_env is None) == (self.token_file is None):
            raise broken_rule("give token_env or token_file, and not both", "token_env")
        return self


class EvidenceSigning(Block):
    """Signatures of the runs that make evidence."""

    signed_by: Keys = Field(default_factory=dict)
    """Public keys by name. With any, evidence counts only if it is signed by one of them."""
    key_env: Annotated[VariableName | None, MayBeOff()] = None
    """Environment variable that holds the private key of a run."""
    key_file: Annotated[Text | None, MayBeOff()] = None
    """File that holds it instead."""

    @model_validator(mode="after")
    def _has_one_key(self) -> Self:
        if self.key_env and self.key_file:
            raise broken_rule("give key_env or key_file, not both", "key_env")
        return self
