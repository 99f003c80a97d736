"""The console in a real browser: sign in, submit, watch the log arrive live, see the bill; both themes, two widths, keyboard,
no JavaScript; zero console errors and not one request to another origin.
"""

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from headframe.model.api import SiteBody
from support import Server, needs, wait_for

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SHOTS = os.environ.get("HEADFRAME_SHOTS")
JOB = """type: job
name: counting
run: for i in 1 2 3 4 5 6; do echo "line $i of 6"; sleep 0.5; done
resources: {gpu: 0, cpu: 0.5, memory: 100MB}
"""
REFUSED_FORM = re.compile(r"responded with a status of (422|401)")  # a form that is refused is answered so, and the browser notes it
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chromium():
    path = needs("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A server with a funded tenant who has run something."""
    server = Server(tmp_path_factory.mktemp("browser")).start()
    tenant = server.tenant("acme", credit_usd=50)
    tenant.submit("name: earlier\nrun: echo done\nresources: {gpu: 0, cpu: 0.5, memory: 100MB}")
    wait_for(lambda: tenant.workload("earlier").workload.closed)
    key = tenant._http.headers["Authorization"].removeprefix("Bearer ")
    with server.operator() as operator:
        operator_key = operator._http.headers["Authorization"].removeprefix("Bearer ")
    yield server, key, operator_key, tenant
    tenant.close()
    server.kill()


@pytest.fixture
def open_page(chromium, place):
    """Pages that fail the test on a console error or a request off-origin."""
    server, key, _, _ = place
    contexts, troubles = [], []

    def make(key=key, sign_in=True, **options):
        context = chromium.new_context(base_url=server.url, **options)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console", lambda message: troubles.append(message.text) if message.type == "error" and not REFUSED_FORM.search(message.text) else None
        )
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith((server.url, "data:")) else troubles.append(f"off-origin: {request.url}"))
        if sign_in:
            page.goto("/")
            page.get_by_label("Key").fill(key)
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url("**/")
        return page

    yield make
    for context in contexts:
        context.close()
    assert troubles == []


def shot(page, name):
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def test_sign_in_submit_watch_the_log_arrive_and_see_the_bill(open_page, place):
    page = open_page()
    page.get_by_role("link", name="New job").click()
    page.get_by_label("Workload file").fill(JOB)
    page.get_by_role("button", name="Quote").click()
    expect(page.get_by_text("Per hour", exact=True)).to_be_visible()
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**/workloads/wl-*")
    log = page.locator("#log")
    expect(log).to_contain_text("line 2 of 6", timeout=10_000)
    early = log.inner_text()
    assert "line 6 of 6" not in early, "the log arrived only when it was over"
    expect(log).to_contain_text("line 6 of 6", timeout=10_000)
    expect(page.locator("#head")).to_contain_text("succeeded", timeout=10_000)
    assert log.inner_text().count("line 3 of 6") == 1
    expect(page.locator("#usage")).to_contain_text("$0.0000", timeout=10_000)
    shot(page, "workload")
    page.get_by_role("link", name="Billing").click()
    expect(page.locator("#invoice")).to_contain_text("counting")
    expect(page.locator("#entries")).to_contain_text("usage")


def test_a_mistake_in_the_form_comes_back_beside_what_was_written(open_page):
    page = open_page()
    page.goto("/new")
    page.get_by_label("Workload file").fill("type: job\nrunn: x\n")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("alert")).to_contain_text("did you mean 'run'?")
    expect(page.get_by_label("Workload file")).to_have_value("type: job\nrunn: x\n")
    page.context.set_default_timeout(5000)


def test_a_wrong_key_is_refused_at_the_door(open_page):
    page = open_page(sign_in=False)
    page.goto("/billing")
    page.get_by_label("Key").fill("hf_op_nonsense")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("no Headframe key")


def test_the_stop_button_stops(open_page, place):
    _, _, _, tenant = place
    made = tenant.submit("name: endless\nrun: sleep 600\nresources: {gpu: 0, cpu: 0.1, memory: 10MB}")
    page = open_page()
    page.goto(f"/workloads/{made.workload.id}")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#head")).to_contain_text("cancelled", timeout=15_000)


def test_the_overview_follows_what_happens_without_reloading(open_page, place):
    _, _, _, tenant = place
    page = open_page()
    expect(page.locator("#live-work")).not_to_contain_text("appearing")
    made = tenant.submit("name: appearing\nrun: sleep 600\nresources: {gpu: 0, cpu: 0.1, memory: 10MB}")
    expect(page.locator("#live-work")).to_contain_text("appearing", timeout=10_000)
    tenant.stop(made.workload.id)
    expect(page.locator("#live-work")).not_to_contain_text("appearing", timeout=15_000)


PAGES = {
    "overview": "/",
    "workloads": "/workloads",
    "new": "/new",
    "nodes": "/nodes",
    "floor": "/floor",
    "heat": "/floor?by=temperature",
    "billing": "/billing",
    "events": "/events",
    "power": "/power",
    "economics": "/economics?by=owner",
}


def test_power_is_shown_to_operators_with_its_limit_and_what_is_shed_next(open_page, place):
    server, _, operator_key, _ = place
    with server.operator() as cloud:
        cloud.set_site(cloud.sites().items[0].name, SiteBody(contract_w=2500, tariff="name: by the clock\nenergy: [{price: 0.07}]\n"))
        wait_for(lambda: cloud.power().hours)
    page = open_page(key=operator_key)
    page.goto("/power")
    expect(page.locator("#now")).to_contain_text("of 2.5")
    expect(page.locator("#now")).to_contain_text("7.00 US¢/kWh")
    expect(page.locator("#ladder tbody tr")).to_have_count(4)
    expect(page.locator("#next svg")).to_be_visible()
    expect(open_page().get_by_role("link", name="Power")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_fits_in_both_themes_and_widths(open_page, place, scheme, width):
    _, _, operator_key, _ = place
    page = open_page(key=operator_key, color_scheme=scheme, viewport={"width": width, "height": 900})
    for name, path in PAGES.items():
        page.goto(path)
        expect(page.locator("h1")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} is wider than the screen"
        shot(page, f"{name}-{scheme}-{width}")
    colours = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.documentElement).backgroundColor]")
    ink, ground = (sum(map(int, re.findall(r"\d+", colour))) for colour in colours)
    assert (ink < ground) == (scheme == "light"), (ink, ground)
    page.goto("/nodes")
    page.locator("#list a").first.click()
    expect(page.get_by_text("NVML lists no GPU").or_(page.get_by_text("UUID"))).to_be_visible()


def test_it_works_without_javascript_but_for_live_updates(open_page, place):
    page = open_page(java_script_enabled=False)
    page.goto("/new")
    page.get_by_label("Workload file").fill("name: no-script\nrun: echo plain\nresources: {gpu: 0, cpu: 0.1, memory: 10MB}")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**/workloads/wl-*")

    def finished():
        page.reload()
        return "succeeded" in page.locator("#head").inner_text()

    wait_for(finished)
    assert "plain" in page.locator("#log").inner_text()


def test_the_keyboard_alone_reaches_everything(open_page):
    page = open_page()
    names = []
    for _ in range(14):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.innerText || document.activeElement.tagName"))
    for wanted in ("Skip to content", "Overview", "Workloads", "Billing", "Events", "Sign out", "New job"):
        assert wanted in names, names
    page.goto("/")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/#main")
