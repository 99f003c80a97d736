"""The form of keys and what is kept of them: ``hf_<kind>_<id>_<secret><checksum>``. The checksum lets scanners and typing mistakes be told from real keys without a
look-up; only HMAC-SHA-256 of the secret under a pepper is stored.
"""

import hashlib
import hmac
import re
import zlib

import msgspec

from headframe.model.ids import KeyId, base32
from headframe.model.people import Scope

KINDS = {Scope.OPERATOR: "op", Scope.ADMIN: "adm", Scope.MEMBER: "mem", Scope.READ: "ro", Scope.INFER: "inf", Scope.GATEWAY: "gw", Scope.NODE: "node", Scope.JOIN: "join", Scope.SIGNAL: "sig"}  # fmt: skip
SECRET_BYTES, CHECKSUM_CHARS = 32, 7
_KEY = re.compile(r"^hf_(op|adm|mem|ro|inf|gw|node|join|sig)_([0-9a-z]{16})_([0-9a-z]{52})([0-9a-z]{7})$")


class KeyText(msgspec.Struct, frozen=True):
    """A key as its holder sends it, taken apart."""

    kind: str
    id: KeyId
    secret: str


def read_key(text: str) -> KeyText | None:
    """The parts of a key, None where that is none."""
    match = _KEY.fullmatch(text)
    if match is None or not hmac.compare_digest(_checksum(text[:-CHECKSUM_CHARS]), match[4]):
        return None
    return KeyText(match[1], KeyId(match[2]), match[3])


def write_key(scope: Scope, key_id: KeyId, secret: bytes) -> tuple[str, str]:
    """The text of a key and its secret's part of it."""
    part = base32(secret)
    body = f"hf_{KINDS[scope]}_{key_id}_{part}"
    return body + _checksum(body), part


def key_mac(pepper: bytes, key_id: str, secret: str) -> str:
    """What is stored of a key."""
    return sign(pepper, "key", f"{key_id}.{secret}")


def replica_key(pepper: bytes, allocation: str) -> str:
    """What a gateway shows to a replica: who has the pepper can make it, nobody else can guess it."""
    return "hfr_" + sign(pepper, "replica", allocation)[:48]


PASS_MS = 60_000
_PASS = re.compile(r"^hfs_([0-9a-z]{16})_(\d{13})_([0-9a-f]{64})$", re.ASCII)


def write_pass(pepper: bytes, key_id: str, now_ms: int) -> str:
    """What lets somebody who is signed in to the console ask models for a minute, in the name of the key with which they signed in."""
    until_ms = now_ms + PASS_MS
    return f"hfs_{key_id}_{until_ms}_{sign(pepper, 'pass', f'{key_id}.{until_ms}')}"


def read_pass(pepper: bytes, text: str, now_ms: int) -> KeyId | None:
    """Whose pass that is, None where it is none or over."""
    match = _PASS.fullmatch(text)
    if match is None or not hmac.compare_digest(sign(pepper, "pass", f"{match[1]}.{match[2]}"), match[3]) or int(match[2]) <= now_ms:
        return None
    return KeyId(match[1])


def sign(pepper: bytes, purpose: str, text: str) -> str:
    """HMAC-SHA-256 in hexadecimal; what is signed for one purpose is of no use for another."""
    return hmac.new(pepper, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()


def _checksum(text: str) -> str:
    return base32(zlib.crc32(text.encode()).to_bytes(4, "big")).rjust(CHECKSUM_CHARS, "0")
