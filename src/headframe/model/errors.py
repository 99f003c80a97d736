"""Everything that can be refused, each with a stable code, an HTTP status and what to do next.

The server turns these into RFC 9457 problems, the CLI into one sentence and an exit code.
"""

from collections.abc import Sequence

import msgspec


class Mistake(msgspec.Struct, frozen=True, kw_only=True):
    """One thing wrong with a workload file: where, what was expected, and the nearest valid spelling."""

    line: int
    key: str
    expected: str
    nearest: str = ""

    def __str__(self) -> str:
        hint = f" (did you mean {self.nearest!r}?)" if self.nearest else ""
        return f"line {self.line}: {self.key}: {self.expected}{hint}"


class HeadframeError(Exception):
    """The root: `code` is stable, `status` is HTTP, `next_step` says what would help."""

    code = "error"
    status = 400
    next_step = ""

    def __init__(self, detail: str, next_step: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.next_step = next_step or type(self).next_step
        self.mistakes: Sequence[Mistake] = ()


class BadRequest(HeadframeError):
    """The request itself can't be read."""

    code, status = "bad_request", 400
    next_step = "see /docs/reference/api for what this call takes"


class BadFile(HeadframeError):
    """A workload file with mistakes, every one of them in `mistakes`."""

    code, status = "bad_workload_file", 422
    next_step = "correct the lines named and send it again"

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__("; ".join(map(str, mistakes)))
        self.mistakes = tuple(mistakes)


class Infeasible(HeadframeError):
    """No part of the fleet, even idle, could run this."""

    code, status = "infeasible", 422
    next_step = "ask for less, or see `headframe offers` for what there is"


class NoCredit(HeadframeError):
    """The hold for this would exceed the project's credit."""

    code, status = "no_credit", 402
    next_step = "ask an operator for credit (`headframe project credit`), or set a shorter max_duration"


class OverBudget(HeadframeError):
    """The project's own budget forbids this."""

    code, status = "over_budget", 409
    next_step = "a project admin can raise it: `headframe project budget`"


class TooExpensive(HeadframeError):
    """Nothing is offered at or under the job's max_price."""

    code, status = "max_price_too_low", 422
    next_step = "raise max_price or choose a cheaper GPU or tier: `headframe offers`"


class NotFound(HeadframeError):
    """No such thing, or not yours: the two are not told apart."""

    code, status = "not_found", 404
    next_step = "list what there is, e.g. `headframe ps --all`"


class NameTaken(HeadframeError):
    """A live workload of this project has the name."""

    code, status = "name_taken", 409
    next_step = "choose another name, or stop the running one first"


class Unauthenticated(HeadframeError):
    """No key, or one that is unknown, expired or revoked."""

    code, status = "unauthenticated", 401
    next_step = "send `Authorization: Bearer hf_…`; `headframe key create` makes one"


class Forbidden(HeadframeError):
    """A valid key without the scope."""

    code, status = "forbidden", 403
    next_step = "use a key with the scope named"


class Conflicting(HeadframeError):
    """The thing is in a state that forbids this."""

    code, status = "conflict", 409
    next_step = "look at its state and try again"


class IdempotencyMismatch(HeadframeError):
    """The same Idempotency-Key with another request."""

    code, status = "idempotency_mismatch", 422
    next_step = "use a new Idempotency-Key for a new request"


class InFlight(HeadframeError):
    """The first request with this Idempotency-Key is not answered yet."""

    code, status = "in_flight", 409
    next_step = "wait a second and repeat the same request"


class TooLarge(HeadframeError):
    """Over a size limit."""

    code, status = "too_large", 413
    next_step = "send less; a .gitignore keeps files out of the workdir"


class Unavailable(HeadframeError):
    """The store can't be written right now: nothing was changed, work already running goes on."""

    code, status = "store_unavailable", 503
    next_step = "repeat the request; the operator's log says what is wrong with the store"


class DiskFull(Unavailable):
    """The disk under the store is full: writes are refused until there is space."""

    code, status = "disk_full", 507
    next_step = "free space under the data directory; Headframe resumes by itself"


class VersionConflict(HeadframeError):
    """Somebody else committed first: plan again on the new state."""

    code, status = "version_conflict", 409


class Fenced(HeadframeError):
    """Another server leads now; this one's decisions no longer count."""

    code, status = "fenced", 409


class StoreMismatch(HeadframeError):
    """The store was made by a newer Headframe, or is no Headframe store."""

    code, status = "store_mismatch", 500
    next_step = "start the Headframe version that made it, or restore a backup"


class Unbelievable(HeadframeError):
    """A figure from outside that can't be meant: nothing acts on it."""

    code, status = "unbelievable", 422
    next_step = "send it as it is"
