"""Keys, sessions and who may do what.

The form of keys is in `model/keys.py`. A console session is a signed note of which key signed in, so revoking the key ends it too.
"""

import hmac
import secrets
from pathlib import Path
from typing import Any

import msgspec

from headframe.files import write_private
from headframe.model.errors import Forbidden, NotFound, Unauthenticated
from headframe.model.ids import AllocationId, KeyId, ProjectId, UserId, base32
from headframe.model.keys import KINDS, SECRET_BYTES, key_mac, read_key, replica_key, sign, write_key, write_pass
from headframe.model.people import ALLOWS, Key, Project, Scope
from headframe.model.world import World

SESSION_MS = 12 * 3_600_000
SESSION_COOKIE = "headframe_session"


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
        key_id = KeyId(base32(secrets.token_bytes(10)))
        text, secret = write_key(scope, key_id, secrets.token_bytes(SECRET_BYTES))
        key = Key(
            id=key_id, name=name, scope=scope, project_id=project, user_id=UserId(""),
            mac=key_mac(self._pepper, key_id, secret), created_ms=now_ms, expires_ms=expires_ms, **bound,
        )  # fmt: skip
        return key, text

    def pass_for(self, key: Key, now_ms: int) -> str:
        """What the console shows to a gateway for whoever is signed in with that key."""
        return write_pass(self._pepper, key.id, now_ms)

    def for_replica(self, allocation: AllocationId) -> str:
        """What gateways show to a replica, and nobody else has."""
        return replica_key(self._pepper, allocation)

    def check(self, world: World, text: str, now_ms: int) -> Key:
        """The live key that `text` is, or Unauthenticated; every failure takes one MAC, whichever it is."""
        parts = read_key(text)
        if parts is None:
            raise Unauthenticated("this is no Headframe key: the form or the checksum is wrong")
        key = world.keys.get(parts.id)
        good = hmac.compare_digest(key_mac(self._pepper, parts.id, parts.secret), key.mac if key else "")
        if key is None or not good or KINDS[key.scope] != parts.kind:
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

    def _sign(self, purpose: str, text: str) -> str:
        return sign(self._pepper, purpose, text)


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
