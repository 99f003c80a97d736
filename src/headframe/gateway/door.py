"""The gateway's door: who asks, for what, and who answers it."""

import logging
import secrets
from typing import Any

import msgspec

from headframe.gateway.book import Caller
from headframe.gateway.exchange import Exchange
from headframe.gateway.house import House
from headframe.gateway.passage import Passage, passage
from headframe.gateway.refusals import Refused, no_key, no_model
from headframe.gateway.replicas import Served
from headframe.gateway.tab import Tab
from headframe.gateway.wire import ClientConnection, Request, head

COMPILED = not __file__.endswith(".py")
"""Whether this is the gateway that HEADFRAME_COMPILE=1 made."""
_log = logging.getLogger("headframe.gateway")


class Door:
    """One gateway's."""

    def __init__(self, house: House) -> None:
        self._house, self._book = house, house.book
        self._last_id = 0
        self._prefix = b"req-" + secrets.token_hex(8).encode() + b"-"

    def answer(self, client: ClientConnection, request: Request) -> Any:
        """Who answers a request; True or False where it is answered already (and whether the connection is kept)."""
        given, keep = request.head.fields.get(b"x-request-id", b""), request.head.keep
        named = given.decode("ascii", "replace") if len(given) <= 128 and given.isascii() else ""
        if named and named.isprintable():
            request_id = given
        else:
            named, self._last_id = "", self._last_id + 1
            request_id = self._prefix + b"%d" % self._last_id
        try:
            return self._answer(client, request, request_id, named)
        except Refused as refused:
            client.write(refused.answer(request_id, keep=keep))
        except Exception:
            _log.exception("a request broke the gateway; this is a bug in Headframe, it goes on")
            client.write(Refused(500, "internal_error", "The gateway failed; this is a bug in Headframe.").answer(request_id, keep=keep))
        return keep

    def _answer(self, client: ClientConnection, request: Request, request_id: bytes, named: str) -> Any:
        path, method = request.head.path, request.head.method
        if path == b"/health":
            return self._say(client, request, request_id, {"status": "ok", "endpoints": len(self._book.endpoints), "compiled": COMPILED})
        caller = self._caller(request)
        passed = passage(request.head.target) if path.startswith(b"/endpoints/") else None
        if passed is not None:
            served = self._book.endpoint(caller, passed[0])
            if served.sold and caller.key.project_id not in {"", served.entry.project_id}:
                raise Refused(403, "sold_by_token", "This endpoint sells tokens: ask it through /v1.")
            through = Passage(self._house, client, request, passed[1], request_id, served, Tab(self._house, served, caller, (0, 0), named))
            through.begin()
            return through
        if path == b"/v1/models" or path.startswith(b"/v1/models/"):
            if method not in {b"GET", b"HEAD"}:
                raise Refused(405, "method_not_allowed", f"{path.decode('latin-1')} is read with GET.")
            return self._say(client, request, request_id, self._models(caller, path[len(b"/v1/models/") :].decode("latin-1")))
        if not path.startswith(b"/v1/"):
            raise Refused(
                404, "not_found", f"There is nothing at {path.decode('latin-1')[:200]}: models are asked at /v1/chat/completions and the like."
            )
        if method != b"POST":
            raise Refused(405, "method_not_allowed", "Models are asked with POST.")
        exchange = Exchange(self._house, client, request, request_id)
        exchange.begin(caller, named)
        return exchange

    def _caller(self, request: Request) -> Caller:
        """By `Authorization: Bearer`, as OpenAI's clients send it, or `x-api-key`, as Anthropic's do."""
        head = request.head
        token = head.token
        if token is None:
            header = head.fields.get(b"authorization", b"")
            token = head.token = header[7:].strip() if header[:7].lower() == b"bearer " else head.fields.get(b"x-api-key", b"")
        if not token:
            raise no_key()
        return self._book.caller(token, self._house.now_ms())

    def _models(self, caller: Caller, wanted: str) -> dict[str, Any]:
        found = [
            {
                "id": served.entry.serving.model or served.entry.name,
                "object": "model",
                "created": served.entry.created_ms // 1000,
                "owned_by": self._owner(served),
            }
            for served in self._book.visible(caller)
        ]
        if not wanted:
            return {"object": "list", "data": found}
        one = next((model for model in found if model["id"] == wanted), None)
        if one is None:
            raise no_model(wanted)
        return one

    def _owner(self, served: Served) -> str:
        tenant = self._book.tenants.get(served.entry.project_id)
        return tenant.entry.name if tenant else "headframe"

    def _say(self, client: ClientConnection, request: Request, request_id: bytes, said: dict[str, Any]) -> bool:
        body = msgspec.json.encode(said)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"x-request-id", request_id)]
        keep, bodiless = request.head.keep, request.head.method == b"HEAD"
        client.write(head(200, headers if keep else [*headers, (b"connection", b"close")]) + (b"" if bodiless else body))
        return keep
