"""The ASGI application: routes, the guard that every one of them passes, security headers, problems."""

from typing import Any

from litestar import Litestar, Request, Response
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ASGIApp, Message, Receive, Send
from litestar.types import Scope as AsgiScope

from headframe.model.errors import HeadframeError
from headframe.server import pages, power_pages, serving_pages
from headframe.server.api import (
    agent,
    endpoints,
    engines,
    events,
    fleet,
    metrics,
    money,
    operate,
    people,
    power,
    problems,
    rigs,
    shells,
    workdirs,
    workloads,
)
from headframe.server.context import PUBLIC, Context, authorise
from headframe.version import VERSION

BODY_BYTES_MAX = 1024 * 1024
"""Of a JSON body; an upload has its own limit."""
_CSP = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)
_SCHEMES = Components(security_schemes={"key": SecurityScheme(type="http", scheme="bearer", description="A key: hf_…")})


def app(context: Context) -> Litestar:
    """The application over one context."""
    openapi = OpenAPIConfig(
        title="Headframe", version=VERSION, description="The operating system of a GPU cloud.", path="/schema",
        render_plugins=[JsonRenderPlugin()], components=_SCHEMES, security=[{"key": []}], use_handler_docstrings=True,
    )  # fmt: skip
    made = Litestar(
        route_handlers=[
            workloads.ROUTER, shells.ROUTER, endpoints.ROUTER, fleet.ROUTER, agent.ROUTER, engines.ROUTER, rigs.ROUTER, operate.ROUTER, people.ROUTER, money.ROUTER, power.ROUTER, events.ROUTER, metrics.ROUTER, workdirs.ROUTER, pages.ROUTER, serving_pages.ROUTER, power_pages.ROUTER,
        ],
        guards=[authorise], exception_handlers={**problems.HANDLERS, HeadframeError: _on_refusal}, openapi_config=openapi,
        dependencies={"context": Provide(lambda: context, sync_to_thread=False)},
        request_max_body_size=BODY_BYTES_MAX, logging_config=None,
    )  # fmt: skip
    made.state.context = context
    for route in made.routes:
        for handler in getattr(route, "route_handlers", []):
            if str(route.path).startswith("/schema"):
                handler.opt["scope"] = PUBLIC
    return made


def _on_refusal(request: Request[Any, Any, Any], error: HeadframeError) -> Response[Any]:
    """A page for people, a problem for programs."""
    if "text/html" in request.headers.get("Accept", "") and not request.url.path.startswith("/v1/"):
        return pages.on_page_error(request.app.state.context, request, error)
    return problems.problem(error)


def secured(inner: ASGIApp, *, tls: bool) -> ASGIApp:
    """Security headers on every answer, also on those that no route gave."""
    headers = [*_HEADERS, *([(b"strict-transport-security", b"max-age=31536000")] if tls else [])]

    async def outer(scope: AsgiScope, receive: Receive, send: Send) -> None:
        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *((n, v) for n, v in headers if n not in present)]
            await send(message)

        await inner(scope, receive, send_secured)

    return outer
