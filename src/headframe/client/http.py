"""HTTP to types and back. Retries only what is idempotent: reads, and writes under the Idempotency-Key that it sends itself."""

import ssl
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import msgspec

from headframe.client.decoded import decoded
from headframe.client.paths import segment
from headframe.client.power import PowerCalls
from headframe.client.workdir import pack
from headframe.model.agent import AddBody, Invitation
from headframe.model.api import (
    Bill,
    BudgetBody,
    CheckBody,
    CreditBody,
    Defragmentation,
    DefragmentBody,
    EnableBody,
    EngineBody,
    EngineList,
    EngineView,
    EntryPage,
    EventPage,
    EventView,
    GpuBody,
    Health,
    KeyBody,
    KeyList,
    KeyMade,
    KeyView,
    LogPage,
    NodeBody,
    NodeHours,
    NodePage,
    NodeReadings,
    NodeView,
    Offers,
    PricesBody,
    Problem,
    ProjectBody,
    ProjectList,
    QuotaBody,
    QuoteView,
    RackBody,
    RackList,
    RackView,
    Reconciliation,
    ReservationBody,
    ReservationList,
    RigList,
    RigsBody,
    ServiceBody,
    SiteBody,
    SiteList,
    SubmitBody,
    UsagePage,
    VolumeList,
    VolumeView,
    Whoami,
    WorkdirMade,
    WorkloadPage,
    WorkloadView,
)
from headframe.model.fleet import Gpu, Reservation, Rig, Site
from headframe.model.money import GpuPrice, Invoice, PriceList
from headframe.model.people import Project, Scope
from headframe.model.serving_api import EndpointList, EndpointView, LimitsBody
from headframe.model.work import LogLine

T = TypeVar("T")
TRIES, PAUSE_S, TIMEOUT_S, STREAM_TIMEOUT_S = 4, 0.2, 30.0, 60.0
_AGAIN = frozenset({502, 503, 504})


class ApiError(Exception):
    """A refusal by the server; `problem` has its stable code and what to do next."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class Unreachable(Exception):
    """No server answered."""


class Client(PowerCalls):
    """One server and one key. Close it, or use it in a `with`."""

    def __init__(self, url: str, key: str = "", *, verify: bool | str | ssl.SSLContext = True, timeout_s: float = TIMEOUT_S) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url = url
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s, verify=verify, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def health(self) -> Health:
        """Whether the server answers."""
        return self._get("/v1/health", Health)

    def whoami(self) -> Whoami:
        """The key in use."""
        return self._get("/v1/whoami", Whoami)

    def quote(self, file: str, project: str = "") -> QuoteView:
        """What a workload file would cost."""
        return self._send("POST", "/v1/quotes", QuoteView, SubmitBody(file=file, project=project))

    def submit(self, file: str, workdir: str | Path | None = None, project: str = "") -> WorkloadView:
        """Submit a workload file, with a directory to upload if one is given."""
        digest = self.upload(Path(workdir)).digest if workdir is not None else ""
        return self._send("POST", "/v1/workloads", WorkloadView, SubmitBody(file=file, workdir=digest, project=project))

    def upload(self, directory: Path) -> WorkdirMade:
        """Upload a directory; `.gitignore` is respected. The same content has the same digest."""
        archive = pack(directory)
        return self._call("PUT", "/v1/workdirs", WorkdirMade, content=archive, headers={"Content-Type": "application/x-tar"})

    def workload(self, name: str) -> WorkloadView:
        """One workload by id or name."""
        return self._get(f"/v1/workloads/{segment(name)}", WorkloadView)

    def workloads(self, *, project: str = "", state: str = "", limit: int = 100) -> Iterator[WorkloadView]:
        """Workloads, newest first, page after page."""
        before = ""
        while True:
            page = self._get("/v1/workloads", WorkloadPage, project=project, state=state, before=before, limit=limit)
            yield from page.items
            before = page.next
            if not before:
                return

    def stop(self, name: str) -> WorkloadView:
        """Ask a workload to end."""
        return self._send("POST", f"/v1/workloads/{segment(name)}/stop", WorkloadView)

    def remove(self, name: str) -> None:
        """Delete an ended workload's logs."""
        self._response("DELETE", f"/v1/workloads/{segment(name)}")

    def logs(self, name: str, after: int = 0, attempt: int = 0, limit: int = 500) -> LogPage:
        """A page of log lines."""
        return self._get(f"/v1/workloads/{segment(name)}/logs", LogPage, after=after, attempt=attempt, limit=limit)

    def follow(self, name: str) -> Iterator[LogLine | WorkloadView]:
        """Log lines as they come, and the workload whenever its state changes, until it ends; reconnects by itself."""
        after, attempt = 0, 0
        while True:
            try:
                for event, identity, data in self._stream(f"/v1/workloads/{segment(name)}/logs/stream", after=after, attempt=attempt):
                    if event == "line":
                        attempt, after = (int(part) for part in identity.split(":"))
                        yield decoded(data, LogLine)
                    elif event in {"state", "end"}:
                        yield decoded(data, WorkloadView)
                    if event == "end":
                        return
            except httpx.TransportError:
                self._wait_until_up()

    def apply_endpoint(self, file: str, workdir: str | Path | None = None, project: str = "") -> EndpointView:
        """Serve a model, or change the endpoint of that name."""
        digest = self.upload(Path(workdir)).digest if workdir is not None else ""
        return self._send("POST", "/v1/endpoints", EndpointView, SubmitBody(file=file, workdir=digest, project=project))

    def endpoints(self, project: str = "") -> EndpointList:
        """What is served."""
        return self._get("/v1/endpoints", EndpointList, project=project)

    def endpoint(self, name: str) -> EndpointView:
        """One endpoint by id or name."""
        return self._get(f"/v1/endpoints/{segment(name)}", EndpointView)

    def stop_endpoint(self, name: str) -> EndpointView:
        """End an endpoint and its replicas."""
        return self._send("POST", f"/v1/endpoints/{segment(name)}/stop", EndpointView)

    def set_limits(self, project: str, rpm: int, tpm: int) -> Project:
        """What a project may ask of endpoints per minute."""
        return self._send("PUT", f"/v1/projects/{segment(project)}/limits", Project, LimitsBody(rpm=rpm, tpm=tpm))

    def events(self, after: int = 0, *, latest: bool = False, limit: int = 100, subject: str = "") -> EventPage:
        """Events after a cursor."""
        return self._get("/v1/events", EventPage, after=after, latest=str(latest).lower(), limit=limit, subject=subject)

    def follow_events(self, after: int = 0) -> Iterator[EventView]:
        """Events as they are committed."""
        while True:
            try:
                for event, identity, data in self._stream("/v1/events/stream", after=after):
                    if event == "event":
                        after = int(identity)
                        yield decoded(data, EventView)
            except httpx.TransportError:
                self._wait_until_up()

    def nodes(self) -> Iterator[NodeView]:
        """All nodes."""
        after = ""
        while True:
            page = self._get("/v1/nodes", NodePage, after=after)
            yield from page.items
            after = page.next
            if not after:
                return

    def node(self, name: str) -> NodeView:
        """One node by id or name."""
        return self._get(f"/v1/nodes/{segment(name)}", NodeView)

    def check_node(self, name: str, body: CheckBody) -> NodeView:
        """Check a node's free cards, and grade them anew."""
        return self._send("POST", f"/v1/nodes/{segment(name)}/check", NodeView, body)

    def add_engine(self, body: EngineBody) -> EngineView:
        """Look at a Slurm cluster, and use it."""
        return self._send("POST", "/v1/engines", EngineView, body)

    def engines(self) -> EngineList:
        """The engines that were added."""
        return self._get("/v1/engines", EngineList)

    def check_engine(self, name: str) -> EngineView:
        """Look at one again."""
        return self._send("POST", f"/v1/engines/{segment(name)}/check", EngineView)

    def remove_engine(self, name: str) -> EngineList:
        """Use it no more."""
        return self._send("DELETE", f"/v1/engines/{segment(name)}", EngineList)

    def reconciliation(self, name: str, hours: int = 24) -> Reconciliation:
        """The ledger beside its own accounting."""
        return self._get(f"/v1/engines/{segment(name)}/reconciliation", Reconciliation, hours=hours)

    def hours(self, name: str, days: int = 7) -> NodeHours:
        """What a node's cards said, hour by hour."""
        return self._get(f"/v1/nodes/{segment(name)}/hours", NodeHours, days=days)

    def readings(self, name: str) -> NodeReadings:
        """What a node's cards say of themselves, now and in the last hours."""
        return self._get(f"/v1/nodes/{segment(name)}/readings", NodeReadings)

    def offers(self) -> Offers:
        """What can be had and what it costs."""
        return self._get("/v1/offers", Offers)

    def prices(self) -> PriceList:
        """The price list in force."""
        return self._get("/v1/prices", PriceList)

    def set_prices(self, *gpus: GpuPrice, cpu_nano: int | None = None, memory_nano: int | None = None, disk_nano: int | None = None) -> PriceList:
        """Change some prices from now on."""
        body = PricesBody(gpus=gpus, cpu_core_hour_nano=cpu_nano, memory_gib_hour_nano=memory_nano, disk_gib_hour_nano=disk_nano)
        return self._send("POST", "/v1/prices", PriceList, body)

    def projects(self) -> ProjectList:
        """The projects that this key may see."""
        return self._get("/v1/projects", ProjectList)

    def create_project(self, name: str, quota_gpus_milli: int = 0) -> Project:
        """A new tenant."""
        return self._send("POST", "/v1/projects", Project, ProjectBody(name=name, quota_gpus_milli=quota_gpus_milli))

    def grant_credit(self, project: str, amount_nano: int, memo: str = "") -> Project:
        """Give a project credit."""
        return self._send("POST", f"/v1/projects/{segment(project)}/credit", Project, CreditBody(amount_nano=amount_nano, memo=memo))

    def set_budget(self, project: str, hour_nano: int, month_nano: int) -> Project:
        """Limit a project."""
        body = BudgetBody(hour_nano=hour_nano, month_nano=month_nano)
        return self._send("PUT", f"/v1/projects/{segment(project)}/budget", Project, body)

    def set_quota(self, project: str, quota_gpus_milli: int, guaranteed_gpus_milli: int, *, whole_machines: bool = False) -> Project:
        """How much a project may hold, and is guaranteed, and whether only on machines of its own."""
        body = QuotaBody(quota_gpus_milli=quota_gpus_milli, guaranteed_gpus_milli=guaranteed_gpus_milli, whole_machines=whole_machines)
        return self._send("PUT", f"/v1/projects/{segment(project)}/quota", Project, body)

    def set_node(self, node: str, body: NodeBody) -> NodeView:
        """Say what a node is for."""
        return self._send("PUT", f"/v1/nodes/{segment(node)}", NodeView, body)

    def move_node(self, node: str, body: ServiceBody) -> NodeView:
        """Drain, resume or retire a node."""
        return self._send("PUT", f"/v1/nodes/{segment(node)}/service", NodeView, body)

    def move_gpu(self, gpu: str, body: EnableBody) -> Gpu:
        """Disable or enable a card."""
        return self._send("PUT", f"/v1/gpus/{segment(gpu)}/service", Gpu, body)

    def sites(self) -> SiteList:
        """All sites."""
        return self._get("/v1/sites", SiteList)

    def set_site(self, site: str, body: SiteBody) -> Site:
        """What a site does by itself."""
        return self._send("PUT", f"/v1/sites/{segment(site)}", Site, body)

    def racks(self) -> RackList:
        """All racks."""
        return self._get("/v1/racks", RackList)

    def set_rack(self, rack: str, body: RackBody) -> RackView:
        """Say what a rack can carry."""
        return self._send("PUT", f"/v1/racks/{segment(rack)}", RackView, body)

    def set_gpu(self, gpu: str, body: GpuBody) -> Gpu:
        """Say what a card is good for, and how it is shared."""
        return self._send("PUT", f"/v1/gpus/{segment(gpu)}", Gpu, body)

    def reservations(self) -> ReservationList:
        """The reservations that this key may see."""
        return self._get("/v1/reservations", ReservationList)

    def reserve(self, body: ReservationBody) -> Reservation:
        """Set nodes aside."""
        return self._send("POST", "/v1/reservations", Reservation, body)

    def cancel_reservation(self, name: str) -> Reservation:
        """Give the nodes back now."""
        return self._send("DELETE", f"/v1/reservations/{segment(name)}", Reservation)

    def defragmentation(self) -> Defragmentation:
        """What moving work together would gain and cost now."""
        return self._get("/v1/defragmentation", Defragmentation)

    def defragment(self, *, apply: bool, automatic: bool | None = None) -> Defragmentation:
        """Move work together now, or have it done by itself from now on."""
        return self._send("POST", "/v1/defragmentation", Defragmentation, DefragmentBody(apply=apply, automatic=automatic))

    def volumes(self, project: str = "") -> VolumeList:
        """The volumes that this key may see."""
        return self._get("/v1/volumes", VolumeList, project=project)

    def remove_volume(self, name: str, project: str = "") -> VolumeView:
        """Delete a volume and what is in it."""
        return self._call("DELETE", f"/v1/volumes/{segment(name)}", VolumeView, params={"project": project} if project else {})

    def rigs(self) -> RigList:
        """The machines that inventories listed."""
        return self._get("/v1/rigs", RigList)

    def await_rigs(self, rigs: tuple[Rig, ...]) -> RigList:
        """Await these machines, all or none."""
        return self._send("POST", "/v1/rigs", RigList, RigsBody(rigs=rigs))

    def invite(self, body: AddBody) -> Invitation:
        """A token with which one machine may join."""
        return self._send("POST", "/v1/nodes/invitations", Invitation, body)

    def keys(self) -> KeyList:
        """The keys that this key may see."""
        return self._get("/v1/keys", KeyList)

    def create_key(
        self, name: str, scope: Scope, project: str = "", expires_in_s: int = 0, rpm: int = 0, tpm: int = 0, budget_nano: int = 0
    ) -> KeyMade:
        """A new key; its text is in this answer alone."""
        body = KeyBody(name=name, scope=scope, project=project, expires_in_s=expires_in_s, rpm=rpm, tpm=tpm, budget_nano=budget_nano)
        return self._send("POST", "/v1/keys", KeyMade, body)

    def revoke_key(self, key_id: str) -> KeyView:
        """Refuse a key from now on."""
        return self._send("DELETE", f"/v1/keys/{segment(key_id)}", KeyView)

    def bill(self, project: str = "", month: str = "") -> Bill:
        """A project's month."""
        return self._get("/v1/bill", Bill, project=project, month=month)

    def usage(self, project: str = "", workload: str = "", before: str = "", limit: int = 100) -> UsagePage:
        """Usage intervals, newest first."""
        return self._get("/v1/usage", UsagePage, project=project, workload=workload, before=before, limit=limit)

    def entries(self, project: str = "", workload: str = "", before: str = "", limit: int = 100) -> EntryPage:
        """Ledger entries, newest first."""
        return self._get("/v1/entries", EntryPage, project=project, workload=workload, before=before, limit=limit)

    def invoice(self, month: str, project: str = "") -> Invoice:
        """A month's invoice."""
        return self._get(f"/v1/invoices/{segment(month)}", Invoice, project=project)

    def _get(self, path: str, kind: type[T], **params: Any) -> T:
        return self._call("GET", path, kind, params={key: value for key, value in params.items() if value not in {"", None}})

    def _send(self, method: str, path: str, kind: type[T], body: msgspec.Struct | None = None) -> T:
        headers = {"Idempotency-Key": uuid.uuid4().hex, "Content-Type": "application/json"}
        return self._call(method, path, kind, content=msgspec.json.encode(body) if body else b"", headers=headers)

    def _call(self, method: str, path: str, kind: type[T], **options: Any) -> T:
        return decoded(self._response(method, path, **options).content, kind)

    def _response(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request, repeated while nobody answers or the server says it can't now: all of ours may be."""
        error: Exception | None = None
        for attempt in range(TRIES):
            time.sleep(PAUSE_S * (2**attempt - 1))
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError as failed:
                error = failed
                continue
            if response.status_code not in _AGAIN or attempt == TRIES - 1:
                return good(response)
        raise Unreachable(f"no Headframe server answers at {self.url}: {error}") from error

    def _stream(self, path: str, **params: Any) -> Iterator[tuple[str, str, str]]:
        timeout = httpx.Timeout(TIMEOUT_S, read=STREAM_TIMEOUT_S)
        with self._http.stream("GET", path, params=params, timeout=timeout) as response:
            if response.status_code != 200:
                response.read()
                good(response)
            event, identity, data = "", "", ""
            for line in response.iter_lines():
                if not line and event:
                    yield event, identity, data
                    event, identity, data = "", "", ""
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                event = value if name == "event" else event
                identity = value if name == "id" else identity
                data = value if name == "data" else data

    def _wait_until_up(self) -> None:
        """Work goes on without the server, so whoever follows it waits for the server, with a limit."""
        for attempt in range(60):
            try:
                self.health()
            except (Unreachable, ApiError):
                time.sleep(min(1.0, 0.1 * (attempt + 1)))
            else:
                return
        raise Unreachable(f"no Headframe server answers at {self.url}")


def good(response: httpx.Response) -> httpx.Response:
    """The answer, or the ApiError that it is."""
    if response.status_code < 400:
        return response
    try:
        problem = decoded(response.content, Problem)
    except msgspec.DecodeError:
        detail = f"{response.status_code} from {response.url.host}: this is no Headframe server, or something stands between"
        problem = Problem(title="Error", status=response.status_code, detail=detail, code="not_headframe")
    raise ApiError(problem)
