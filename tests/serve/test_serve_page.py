"""The page in a real browser."""

from __future__ import annotations

import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        flags = ["--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream"]
        browser = p.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


def wait_until(page, expression: str) -> None:
    """Playwright's own wait_for_function evaluates in the page, which its policy forbids."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    raise AssertionError(expression)


def upload(page, url: str, file) -> None:
    page.goto(url)
    wait_until(page, "document.querySelectorAll('select option').length == 5")
    page.set_input_files("#file", file)
    page.wait_for_selector(".answer:nth-of-type(2) li")


@pytest.mark.parametrize("width", [1200, 390])
def test_an_image_through_two_artifacts(server, served_run, browser, width) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844})
    page = context.new_page()
    asked: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    upload(page, server, served_run.parent / "images/000.png")
    page.wait_for_selector("#differ:not(:empty)")
    assert page.locator(".answer li").count() == 8  # four classes each
    assert "Both say the same" in page.inner_text("#differ") and "ms inference on cpu" in page.inner_text(".time")
    assert page.locator("#image").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not problems and all(url.startswith((server, "blob:", "data:")) for url in asked)
    context.close()


def test_a_camera_that_is_denied_and_one_that_is_not(server, browser) -> None:
    page = browser.new_page()
    page.goto(server)
    page.click("#camera")
    page.wait_for_selector("#message.bad")
    assert "not allowed" in page.inner_text("#message")
    page.close()
    context = browser.new_context(permissions=["camera"])
    page = context.new_page()
    page.goto(server)
    wait_until(page, "document.querySelectorAll('select option').length == 5")
    page.click("#camera")
    wait_until(page, "document.querySelector('#video').videoWidth > 0")
    page.click("#shoot")
    page.wait_for_selector(".answer li")
    context.close()


def test_a_file_that_is_no_image_is_told(server, browser, tmp_path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    page = browser.new_page()
    page.goto(server)
    wait_until(page, "document.querySelectorAll('select option').length == 5")
    page.set_input_files("#file", bad)
    page.wait_for_selector("#message.bad")
    assert "can't be read" in page.inner_text("#message")
    page.close()
