"""The chat page in a real browser: it streams, stops, shows its speed, asks for a key, loads nothing from elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.server import Running, running
from llmcore.engine.load import EngineSettings
from llmcore.llm import LLM
from llmcore_server.service import Limits

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module", params=["", "secret"], ids=["open", "key"])
def served(request: pytest.FixtureRequest, smollm2_path: Path) -> Iterator[Running]:
    def load() -> LLM:
        return LLM(str(smollm2_path), backend="numba", threads=2, engine=EngineSettings(max_seqs=8))

    with running(load, Limits(api_key=request.param)) as server:
        yield server


def test_a_conversation(browser: Any, served: Running) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.goto(served.url)
    if served.service.limits.api_key:
        page.get_by_placeholder("API key").fill("secret")
        page.get_by_placeholder("API key").press("Enter")
    page.get_by_text("tiny").wait_for()
    page.get_by_label("temperature").fill("0")

    page.get_by_placeholder("Say something").fill(QUESTION)
    page.get_by_placeholder("Say something").press("Enter")
    page.get_by_text("The capital of France is Paris.").wait_for()
    page.get_by_text("tokens/s").wait_for()

    page.get_by_placeholder("Say something").fill("Write a very long story about the sea, with many words.")
    page.get_by_role("button", name="Send").click()
    story = page.locator(".assistant").nth(1)
    while len(story.text_content()) < 20:
        page.wait_for_timeout(5)
    page.get_by_role("button", name="Stop").click()
    page.locator(".speed").nth(1).wait_for()
    served.wait_idle()
    assert page.get_by_role("button", name="Send").is_visible()

    page.get_by_role("button", name="New").click()
    assert page.locator(".turn").count() == 0
    assert all(url.startswith(served.url) for url in asked)
    assert not [text for text in said if "401" not in text and "favicon" not in text and "404" not in text]
    page.close()
