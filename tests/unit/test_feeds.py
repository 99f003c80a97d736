"""Prices and signals from elsewhere: OpenADR events become signals once, feeds are read by their form, a lost one changes nothing, what can't be meant is refused whole."""

import asyncio
import http.server
import json
import threading
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headframe.dispatch.survey import limit_w, market_of
from headframe.model.command import SetSite
from headframe.model.errors import BadRequest, HeadframeError
from headframe.model.power import SignalKind, Tariff
from headframe.model.units import MS_PER_HOUR
from headframe.server import openadr
from headframe.server.decide import SITE, decide
from headframe.server.feeds import Feeds, fetched, plain_url
from headframe.server.feeds_file import FORMS, Feed, commands, feeds
from support import NOW_MS, commit, fleet

HOUR = MS_PER_HOUR
START = "2025-06-15T15:00:00Z"


def iso(at_ms):
    return f"{__import__('datetime').datetime.fromtimestamp(at_ms / 1000, __import__('datetime').timezone.utc).isoformat()}"


def event(*intervals, key="ev-1", modified=NOW_MS, start=NOW_MS, duration="PT1H", **more):
    return {
        "id": key, "objectType": "EVENT", "programID": "p", "eventName": "peak", "modificationDateTime": iso(modified), "createdDateTime": iso(NOW_MS),
        "intervalPeriod": {"start": iso(start), "duration": duration}, "targets": None,
        "intervals": [{"id": n, "payloads": [{"type": kind, "values": [value]}]} for n, (kind, value) in enumerate(intervals)], **more,
    }  # fmt: skip


@pytest.fixture
def world():
    made = fleet(nodes=1)
    commit(made, decide(made, SetSite(site_id=SITE, contract_w=1_000_000, tariff=Tariff(name="t", market="hub")), NOW_MS))
    return made


class Told:
    """A feed whose answers a test gives, before a world that is committed to at once."""

    def __init__(self, world, *rows, answers):
        self.world, self.now_ms, self.refused, self.answers, self.events = world, NOW_MS, 0, answers, []
        desk = SimpleNamespace(world=world, clock_ms=lambda: self.now_ms, write=self.write)
        self.feeds = Feeds(desk, SimpleNamespace(epoch=1), rows, self.refuse, self.fetch)

    async def write(self, change, _epoch):
        self.events += commit(self.world, change(self.world, self.now_ms))

    def refuse(self):
        self.refused += 1

    async def fetch(self, feed):
        answer = self.answers[feed.name]
        if isinstance(answer, Exception):
            raise answer
        return json.dumps(answer).encode()

    def look(self, later_ms=0):
        self.now_ms += later_ms
        asyncio.run(self.feeds.once())
        return {view.name: view for view in self.feeds.views()}


GRID = Feed(name="grid", form="openadr", url="https://vtn.example/events", every="10s")
HUB = Feed(name="hub", form="prices", url="file:///x", market="hub", factor=2.0)


def test_intervals_follow_one_another_and_each_payload_type_is_what_the_standard_says(world):
    site = world.sites[SITE]
    told = openadr.told(
        event(("IMPORT_CAPACITY_LIMIT", 700), ("PRICE", 0.12), ("SIMPLE", 2), ("ALERT_GRID_EMERGENCY", "now"), ("GHG", 3)), site, "grid", NOW_MS
    )
    assert [(s.kind, s.value, (s.start_ms - NOW_MS) // HOUR) for s in told.take.signals] == [
        (SignalKind.LIMIT, 700_000, 0), (SignalKind.PRICE, 120, 1), (SignalKind.LEVEL, 2, 2), (SignalKind.LEVEL, 3, 3),
    ]  # fmt: skip
    assert told.ignored == ("GHG",)
    assert all(s.end_ms - s.start_ms == HOUR and s.why == "peak" for s in told.take.signals)


def test_units_are_those_that_the_event_declares(world):
    site = world.sites[SITE]

    def value(kind, number, **descriptor):
        return (
            openadr.told(event((kind, number), payloadDescriptors=[{"payloadType": kind, **descriptor}]), site, "grid", NOW_MS).take.signals[0].value
        )

    assert value("IMPORT_CAPACITY_LIMIT", 70, units="PERCENT") == 700_000
    assert value("DISPATCH_SETPOINT", 5.5, units="KW") == 5500
    assert value("PRICE", 0.1, units="KWH", currency="USD") == pytest.approx(100)
    for kind, said in (("PRICE", {"currency": "EUR"}), ("PRICE", {"units": "GHG"}), ("IMPORT_CAPACITY_LIMIT", {"units": "VOLTS"})):
        with pytest.raises(BadRequest):
            value(kind, 1, **said)
    with pytest.raises(BadRequest, match="no contract"):
        openadr.told(
            event(("IMPORT_CAPACITY_LIMIT", 70), payloadDescriptors=[{"payloadType": "IMPORT_CAPACITY_LIMIT", "units": "PERCENT"}]),
            msgspec.structs.replace(site, contract_w=0),
            "g",
            NOW_MS,
        )


def test_an_event_without_an_end_or_a_beginning_holds_from_now_for_a_month_and_what_is_over_is_left_out(world):
    site = world.sites[SITE]
    endless = openadr.told(
        {**event(("SIMPLE", 1)), "intervalPeriod": {"start": "0000-00-00", "duration": "P9999Y"}}, site, "grid", NOW_MS
    ).take.signals[0]
    assert (endless.start_ms, endless.end_ms) == (NOW_MS, NOW_MS + openadr.LONGEST_MS)
    assert openadr.told(event(("SIMPLE", 1), ("SIMPLE", 2), start=NOW_MS - HOUR), site, "grid", NOW_MS).take.signals[0].value == 2


@pytest.mark.parametrize(
    "document",
    [
        {"objectType": "REPORT"}, {"id": "a"}, {"id": "../x", **{}}, event(("SIMPLE", "much")), event(("SIMPLE", True)), event(("UNHEARD", 1)), event(("SIMPLE", 1), key="a b"),
        {**event(("SIMPLE", 1)), "intervalPeriod": {"start": "tomorrow", "duration": "PT1H"}}, {**event(("SIMPLE", 1)), "intervalPeriod": {"start": START, "duration": "an hour"}},
        {**event(("SIMPLE", 1)), "intervalPeriod": {"start": "2025-06-15T15:00:00", "duration": "PT1H"}}, {"object": 3}, {"object": {"id": 4}}, {"id": "a", "intervals": [{"payloads": 3}]},
    ],
)  # fmt: skip
def test_what_is_no_event_is_refused_with_the_reason(world, document):
    with pytest.raises(BadRequest):
        openadr.told(document, world.sites[SITE], "grid", NOW_MS)


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "intervals", "payloads", "type", "values", "object", "start", "duration", "intervalPeriod", "data", "price"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(anything, st.sampled_from(sorted(FORMS)))
def test_no_answer_of_a_feed_does_anything_but_be_taken_or_refused(document, form):
    made = fleet(nodes=1)
    feed = Feed(name="f", form=form, url="https://x", market="hub", coin="RVN")
    try:
        for command in commands(feed, json.dumps(document).encode(), made, NOW_MS):
            commit(made, decide(made, command, NOW_MS))
    except HeadframeError:
        pass


def test_an_event_is_acted_on_once_a_change_takes_its_place_and_what_it_has_no_more_is_cancelled(world):
    answers = {"grid": [event(("IMPORT_CAPACITY_LIMIT", 700), ("IMPORT_CAPACITY_LIMIT", 600))]}
    told = Told(world, GRID, answers=answers)
    told.look()
    assert limit_w(world, world.sites[SITE], NOW_MS) == 700_000
    heard = len(told.events)
    told.look(20_000)
    assert len(told.events) == heard, "the same event again changes nothing"
    answers["grid"] = [event(("IMPORT_CAPACITY_LIMIT", 800), modified=NOW_MS + 30_000)]
    told.look(20_000)
    assert limit_w(world, world.sites[SITE], told.now_ms) == 800_000
    assert limit_w(world, world.sites[SITE], NOW_MS + HOUR + 1) == 1_000_000, "its second hour is gone with the change"
    answers["grid"] = [event(("IMPORT_CAPACITY_LIMIT", 100), modified=NOW_MS)]
    told.look(20_000)
    assert limit_w(world, world.sites[SITE], told.now_ms) == 800_000, "an older version does not come back"


def test_a_lost_feed_keeps_what_it_said_until_its_end_and_then_the_contract_counts(world):
    answers = {"grid": [event(("IMPORT_CAPACITY_LIMIT", 700))]}
    told = Told(world, GRID, answers=answers)
    told.look()
    answers["grid"] = OSError("no route")
    view = told.look(20_000)["grid"]
    assert "no route" in view.why
    assert view.good_ms == NOW_MS
    assert limit_w(world, world.sites[SITE], told.now_ms) == 700_000
    assert limit_w(world, world.sites[SITE], NOW_MS + HOUR) == 1_000_000
    answers["grid"] = []
    assert told.look(20_000)["grid"].why == ""


def test_a_poisoned_answer_is_refused_whole_and_counted(world):
    answers = {"hub": {iso(NOW_MS // HOUR * HOUR): 40.0, iso(NOW_MS // HOUR * HOUR + HOUR): 90_000}}
    told = Told(world, HUB, answers=answers)
    assert "no market's price" in told.look()["hub"].why
    assert told.refused == 1
    assert not world.market_days
    answers["hub"] = {iso(NOW_MS // HOUR * HOUR): 40.0}
    assert told.look(600_000)["hub"].why == ""
    assert market_of(world, world.sites[SITE])(NOW_MS) == 80.0, "times its factor"


def test_signals_of_a_file_are_taken_by_their_own_names(world):
    row = {"event": "e1", "kind": "limit", "value": 700_000, "end_ms": NOW_MS + HOUR}
    feed = Feed(name="breaker", form="signals", url="file:///x", every="5s")

    def take(*rows):
        for command in commands(feed, json.dumps(rows).encode(), world, NOW_MS):
            commit(world, decide(world, command, NOW_MS))

    take(row, {**row, "event": "over", "end_ms": NOW_MS - 1})
    assert sorted(world.signals) == [f"{SITE}/breaker/e1"]
    assert limit_w(world, world.sites[SITE], NOW_MS) == 700_000
    take({**row, "version": 1, "cancelled": True})
    assert limit_w(world, world.sites[SITE], NOW_MS) == 1_000_000
    with pytest.raises(BadRequest, match="named by"):
        take({**row, "event": "../" * 40})


def test_public_price_services_are_read_by_their_own_forms(world):
    first = NOW_MS // HOUR * HOUR
    quarters = {"unix_seconds": [first // 1000 + n * 900 for n in range(5)], "price": [10, 20, 30, 40, None], "unit": "EUR / MWh"}
    awattar = {"object": "list", "data": [{"start_timestamp": first, "end_timestamp": first + HOUR, "marketprice": 41.5, "unit": "Eur/MWh"}]}
    for form, answer, price in (("energy-charts", quarters, 27.0), ("awattar", awattar, 44.82)):
        feed = Feed(name="x", form=form, url="https://x", market="hub", factor=1.08)
        for command in commands(feed, json.dumps(answer).encode(), world, NOW_MS):
            commit(world, decide(world, command, NOW_MS))
        assert market_of(world, world.sites[SITE])(NOW_MS) == pytest.approx(price)


def test_feeds_are_looked_at_as_often_as_they_say(world):
    asked = []
    told = Told(world, GRID, HUB, answers={"grid": [], "hub": {}})
    inner = told.fetch

    async def counting(feed):
        asked.append(feed.name)
        return await inner(feed)

    told.feeds._fetch = counting
    for _ in range(4):
        told.look(5_000)
    assert (asked.count("grid"), asked.count("hub")) == (2, 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("feeds: [{name: A, form: prices, url: 'https://x', market: m}]", "name"), ("feeds: [{name: a, form: soap, url: 'https://x'}]", "form"),
        ("feeds: [{name: a, form: prices, url: 'ftp://x', market: m}]", "url"), ("feeds: [{name: a, form: prices, url: 'https://x'}]", "market"),
        ("feeds: [{name: a, form: prices, url: 'http://[::', market: m}]", "url"), ("feeds: [{name: a, form: prices, url: 'https://', market: m}]", "url"),
        ("feeds: [{name: a, form: coin, url: 'https://x'}]", "coin"), ("feeds: [{name: a, form: signals, url: 'https://x', every: 1s}]", "every"),
        ("feeds: [{name: a, form: signals, url: 'https://x', every: soon}]", "feeds"), ("feeds: 3", "feeds"), ("feeds: [{name: a, form: signals, url: 'https://x'}, {name: a, form: signals, url: 'https://y'}]", "name"),
        ("feeds: [{name: a, form: signals, url: 'https://x', tokn: y}]", "tokn"), ("{", "feeds"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_feeds_file_is_told_with_its_place(text, says):
    with pytest.raises(BadRequest, match=says):
        feeds(text)


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        moved = self.path.startswith("/moved")
        self.send_response(302 if moved else 500 if self.path.startswith("/broken") else 200)
        if moved:
            self.send_header("Location", "/events")
        self.end_headers()
        self.wfile.write(b"[]" if not self.path.startswith("/huge") else b" " * (9 << 20))

    def log_message(self, *_):
        pass


def test_an_address_is_asked_with_its_token_and_nothing_is_followed_elsewhere(tmp_path):
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def ask(path):
            return asyncio.run(fetched(Feed(name="a", form="openadr", url=f"http://127.0.0.1:{server.server_port}{path}", token_file=str(token))))

        assert ask("/events") == b"[]"
        assert server.asked[-1] == ("/events", "Bearer s3cret")
        for path in ("/moved", "/broken", "/huge"):
            with pytest.raises(BadRequest):
                ask(path)
        assert [path for path, _ in server.asked].count("/events") == 1
        server.shutdown()
    assert asyncio.run(fetched(Feed(name="a", form="openadr", url=token.as_uri()))) == b"s3cret\n"
    with pytest.raises(OSError):
        asyncio.run(fetched(Feed(name="a", form="openadr", url=(tmp_path / "none").as_uri())))


def test_what_may_be_secret_in_an_address_is_not_shown():
    assert plain_url("https://me:secret@vtn.example:8443/events?key=hush") == "https://vtn.example:8443/events"
