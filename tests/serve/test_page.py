"""The web page in a real browser, as wide as a desk and as narrow as a phone."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from test_http import event, live

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if program is None:
        pytest.skip("no Chromium here; scripts/install-test-programs.sh installs one")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory, world):
    folder: Path = tmp_path_factory.mktemp("site")
    with live(folder, world.bundle) as (_, client):
        past = time.time_ns() // 1_000_000 - 10**6
        client.add([event(n, "<b>anna</b>", time=past + n) for n in range(30)])
        yield client


@pytest.mark.parametrize("width", [1200, 390], ids=["desk", "phone"])
def test_a_person_scores_candidates_and_sees_why(browser, site, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "request", lambda request: request.url.startswith(site.url) or errors.append(request.url)
    )
    page.goto(site.url)
    page.wait_for_function("document.querySelector('#items').value.split('\\n').length === 12")
    page.fill("#user", "<b>anna</b>")
    page.click("#score")
    page.wait_for_selector("#scores li")
    assert page.locator("#scores li").count() == 12
    assert "20 events" in page.inner_text("#facts")
    assert page.locator("#tabs button").all_inner_texts() == [
        "complete (8)",
        "median (4)",
        "focused (4)",
    ]
    assert page.locator("#kept li").count() == 4
    page.click("#tabs button:first-child")
    assert page.locator("#kept li").count() == 8
    assert page.locator("#strip rect").count() == 16
    page.locator("#scores li button").nth(3).click()
    assert page.locator("#scores li button").nth(3).get_attribute("aria-pressed") == "true"
    assert page.inner_text("#chosen")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    small = page.evaluate(
        "[...document.querySelectorAll('button, input, textarea, select')]"
        ".filter(each => each.offsetParent && each.getBoundingClientRect().height < 40).length"
    )
    assert small == 0
    page.fill("#user", "")
    page.click("#score")
    page.wait_for_function("document.querySelector('#problem').textContent !== ''")
    page.wait_for_timeout(600)  # the suggestions of the emptied field have come: the problem stays
    assert page.inner_text("#problem")
    assert errors == []
    page.close()


def test_the_page_asks_for_tokens(browser, tmp_path, world) -> None:
    import json

    path = tmp_path / "tokens.json"
    tokens = {scope: [f"{scope}-0123456789abcdef"] for scope in ("rank", "ingest", "admin")}
    path.write_text(json.dumps(tokens))
    with live(tmp_path, world.bundle, tokens=path) as (_, client):
        page = browser.new_page()
        page.goto(client.url)
        page.wait_for_selector("#gate", state="visible")
        page.fill("#token", tokens["rank"][0])
        page.fill("#admin", tokens["admin"][0])
        page.click("#enter")
        page.wait_for_function("document.querySelector('#items').value !== ''")
        page.fill("#user", "someone")
        page.click("#score")
        page.wait_for_selector("#scores li")
        assert "no events" in page.inner_text("#facts")
        page.close()


def test_the_interface_page_needs_nothing_from_elsewhere(browser, site) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda it: it.url.startswith(site.url) or errors.append(it.url))
    page.goto(site.url + "/docs")
    page.wait_for_selector("#schemas details")
    assert page.locator("#paths details").count() == 18
    page.locator("#paths summary").first.click()
    assert page.is_visible("text=RankAnswer >> nth=0")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert errors == []
    page.close()
