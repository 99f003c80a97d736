"""Keys, sessions and who may do what.

A key reads ``hf_<kind>_<id>_<secret><checksum>``: the checksum lets scanners and typing mistakes be told from real keys
without a look-up; only HMAC-SHA-256 of the secret under the server's pepper is stored. A console session is a signed note of
which key signed in, so revoking the key ends it too.
"""

import hashlib
import hmac
import re
import secrets
import zlib
from pathlib import Path
from typing import Any

import msgspec

from headframe.files import write_private
from headframe.model.errors import Forbidden, NotFound, Unauthenticated
from headframe.model.ids import KeyId, ProjectId, UserId, base32
from headframe.model.people import ALLOWS, Key, Project, Scope
from headframe.model.world import World

KINDS = {Scope.OPERATOR: "op", Scope.ADMIN: "adm", Scope.MEMBER: "mem", Scope.READ: "ro", Scope.NODE: "node", Scope.JOIN: "join"}
SECRET_BYTES, CHECKSUM_CHARS = 32, 7
SESSION_MS = 12 * 3_600_000
SESSION_COOKIE = "headframe_session"
_KEY = re.compile(r"^hf_(op|adm|mem|ro|node|join)_([0-9a-z]{16})_([0-9a-z]{52})([0-9a-z]{7})$")


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who is calling: a valid key. `session` is set when a cookie brought them."""

    key: Key
    session: str = ""

    def require(self, scope: Scope) -> None:
        """Raise Forbidden unless the key allows `scope`."""
        if scope not in ALLOWS[self.key.scope]:
            raise Forbidden(f"this needs a key of scope {scope}, yours is {self.key.scope}")


class Auth:
    """Checks keys against the world's, and signs sessions. The pepper never leaves this object."""

    def __init__(self, pepper: bytes) -> None:
        assert len(pepper) >= SECRET_BYTES, "a pepper has at least 32 bytes"
        self._pepper = pepper

    def new_key(self, name: str, scope: Scope, project: ProjectId, now_ms: int, expires_ms: int = 0, **bound: Any) -> tuple[Key, str]:
        """A key to store and the text to show once; `bound` says what a machine's key is bound to."""
        key_id, secret = base32(secrets.token_bytes(10)), base32(secrets.token_bytes(SECRET_BYTES))
        key = Key(
            id=KeyId(key_id), name=name, scope=scope, project_id=project, user_id=UserId(""),
            mac=self._mac(key_id, secret), created_ms=now_ms, expires_ms=expires_ms, **bound,
        )  # fmt: skip
        body = f"hf_{KINDS[scope]}_{key_id}_{secret}"
        return key, body + _checksum(body)

    def check(self, world: World, text: str, now_ms: int) -> Key:
        """The live key that `text` is, or Unauthenticated; every failure takes one MAC, whichever it is."""
        match = _KEY.fullmatch(text)
        if match is None or not hmac.compare_digest(_checksum(text[:-CHECKSUM_CHARS]), match[4]):
            raise Unauthenticated("this is no Headframe key: the form or the checksum is wrong")
        key = world.keys.get(KeyId(match[2]))
        good = hmac.compare_digest(self._mac(match[2], match[3]), key.mac if key else "")
        if key is None or not good or KINDS[key.scope] != match[1]:
            raise Unauthenticated("this key is not known here")
        return _live(key, now_ms)

    def sign_in(self, key: Key, now_ms: int) -> str:
        """The session cookie's value for a key."""
        note = f"{key.id}.{now_ms + SESSION_MS}"
        return f"{note}.{self._sign('session', note)}"

    def session(self, world: World, cookie: str, now_ms: int) -> Principal:
        """Who a session cookie is, or Unauthenticated."""
        note, _, signature = cookie.rpartition(".")
        key_id, _, expires = note.partition(".")
        if not hmac.compare_digest(self._sign("session", note), signature) or not expires.isdigit():
            raise Unauthenticated("this session is not valid: sign in again")
        key = world.keys.get(KeyId(key_id))
        if key is None or int(expires) <= now_ms:
            raise Unauthenticated("this session is over: sign in again")
        return Principal(key=_live(key, now_ms), session=cookie)

    def csrf(self, session: str) -> str:
        """The token that a session's own forms carry."""
        return self._sign("csrf", session)

    def csrf_good(self, session: str, token: str) -> bool:
        """Whether a form came from this session's own page."""
        return hmac.compare_digest(self.csrf(session), token)

    def _mac(self, key_id: str, secret: str) -> str:
        return self._sign("key", f"{key_id}.{secret}")

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._pepper, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()


def project_for(world: World, principal: Principal, wanted: str | None) -> Project:
    """The project a call is about: the key's own, or for an operator the one named (id or name) or the only one."""
    key = principal.key
    if key.project_id:
        own = world.projects.get(key.project_id)
        if own is None or wanted not in {None, "", own.id, own.name}:
            raise NotFound(f"no project {wanted}")
        return own
    named = [project for project in world.projects.values() if wanted in {project.id, project.name}]
    if wanted:
        if not named:
            raise NotFound(f"no project {wanted}", "list them: `headframe project ls`")
        return named[0]
    if len(world.projects) != 1:
        raise NotFound(f"there are {len(world.projects)} projects: name one", "add `--project NAME` (API: ?project=)")
    return next(iter(world.projects.values()))


def may_see(principal: Principal, project_id: ProjectId) -> bool:
    """Whether a row of this project is visible; the operator's key sees all."""
    return principal.key.project_id in {"", project_id}


def load_pepper(path: Path) -> bytes:
    """The server's secret, made once, readable by its owner alone."""
    if not path.exists():
        write_private(path, secrets.token_bytes(SECRET_BYTES))
    return path.read_bytes()


def _live(key: Key, now_ms: int) -> Key:
    if key.revoked_ms:
        raise Unauthenticated("this key is revoked")
    if key.expires_ms and key.expires_ms <= now_ms:
        raise Unauthenticated("this key has expired")
    return key


def _checksum(text: str) -> str:
    return base32(zlib.crc32(text.encode()).to_bytes(4, "big")).rjust(CHECKSUM_CHARS, "0")
