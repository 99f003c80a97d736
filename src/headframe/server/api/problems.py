"""Refusals as RFC 9457 problems, and the documentation of which a route may answer."""

import logging
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException, NotAuthorizedException, ValidationException
from litestar.openapi import ResponseSpec

from headframe.model.api import Problem
from headframe.model.errors import HeadframeError

PROBLEM_JSON = "application/problem+json"
_log = logging.getLogger(__name__)
_CODES = {400: "bad_request", 401: "unauthenticated", 403: "forbidden", 404: "not_found", 405: "method_not_allowed", 413: "too_large",
          415: "unsupported_media_type", 422: "invalid", 429: "too_many"}  # fmt: skip


def answers(*statuses: int) -> dict[int, ResponseSpec]:
    """OpenAPI documentation of the problems a route may answer with; every route may answer 400, 401, 403, 503 and 507."""
    every = sorted({400, 401, 403, 503, 507, *statuses})
    return {status: ResponseSpec(Problem, generate_examples=False, description=_title(status), media_type=PROBLEM_JSON) for status in every}


def problem(error: HeadframeError) -> Response[Problem]:
    """One refusal as a response."""
    body = Problem(
        title=_title(error.status), status=error.status, detail=error.detail, code=error.code, next_step=error.next_step,
        mistakes=tuple(error.mistakes),
    )  # fmt: skip
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {"Retry-After": "1"} if error.status == 503 else {}
    return Response(body, status_code=error.status, media_type=PROBLEM_JSON, headers=headers)


def on_headframe_error(_request: Request[Any, Any, Any], error: HeadframeError) -> Response[Problem]:
    """Our own refusals."""
    return problem(error)


def on_http_exception(request: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    """The framework's: bad bodies, unknown paths, wrong methods."""
    status = 401 if isinstance(error, NotAuthorizedException) else error.status_code
    detail, look = error.detail, "see /schema/openapi.json"
    if status == 404:
        detail, look = f"nothing is at {request.url.path}", f"a name has no slash in it; else {look}"
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        detail = "; ".join(f"{extra.get('key', 'body')}: {extra.get('message', '')}" for extra in error.extra if isinstance(extra, dict))
    body = Problem(title=_title(status), status=status, detail=detail, code=_CODES.get(status, "error"), next_step=look)
    headers = {key: value for key, value in (error.headers or {}).items() if key.lower() == "allow"}
    return Response(body, status_code=status, media_type=PROBLEM_JSON, headers=headers)


def on_bug(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """A mistake of ours: logged whole, told briefly."""
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    body = Problem(title="Internal error", status=500, detail="this is a bug in Headframe", code="internal",
                   next_step="the server's log has the details; please report it")  # fmt: skip
    return Response(body, status_code=500, media_type=PROBLEM_JSON)


HANDLERS: Any = {HeadframeError: on_headframe_error, HTTPException: on_http_exception, Exception: on_bug}


def _title(status: int) -> str:
    titles = {400: "Bad request", 401: "Not authenticated", 402: "Not enough credit", 403: "Not allowed", 404: "Not found",
              405: "Method not allowed", 409: "Conflict", 413: "Too large", 415: "Unsupported media type", 422: "Can't be done as asked",
              429: "Too many", 503: "Not available now", 507: "Disk full"}  # fmt: skip
    return titles.get(status, "Error")
