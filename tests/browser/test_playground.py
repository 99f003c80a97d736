"""The pages of endpoints and the playground, in a real browser, on a real model."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "real"))

from playwright.sync_api import expect, sync_playwright

from support import needs
from test_endpoints import Cloud, model  # noqa: F401

pytestmark = pytest.mark.slow


def test_an_endpoint_is_watched_talked_to_and_stopped_in_the_console(tmp_path, model):  # noqa: F811
    cloud = Cloud(tmp_path)
    try:
        cloud.apply(model, replicas="0..2", pricing={"input": "100", "output": "200"})
        key = cloud.operator.create_key("person", "member", "acme").secret
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=needs("chromium"), args=["--no-sandbox"])
            page, wrong = browser.new_page(), []
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
            page.goto(f"{cloud.server.url}/sign-in?path=/endpoints")
            page.fill("input[name=key]", key)
            page.click("button")
            page.click("td a:has-text('tiny')")
            expect(page.locator("#replicas")).to_contain_text("ready")
            scripts = []
            page.route("**/static/talk.js", lambda route: scripts.append(route))
            page.click("text=Talk to it")
            expect(page.locator("textarea")).to_be_disabled()  # what is sent before the script has run would be lost
            scripts.pop().continue_()
            page.fill("textarea", "hello there")
            page.press("textarea", "Enter")
            expect(page.locator("#used")).to_have_text(re.compile(r"\d+ tokens in, 512 out, \$0\.\d+, \d+ tokens/s"), timeout=20_000)
            assert len(page.locator(".said .assistant").inner_text()) > 500
            page.fill("textarea", "and again")
            page.click("#send")
            expect(page.locator(".said .assistant")).to_have_count(2)
            expect(page.locator("#send")).to_be_enabled(timeout=20_000)
            page.goto(f"{cloud.server.url}/endpoints")
            page.click("td a:has-text('tiny')")
            expect(page.locator("#charts")).to_contain_text("Time to the first byte")
            expect(page.locator("#sums")).to_contain_text("out", timeout=15_000)
            page.click("button.danger")
            expect(page.locator("#head")).to_contain_text(re.compile("stopping|stopped"))
            assert not wrong
            browser.close()
    finally:
        cloud.stop()
