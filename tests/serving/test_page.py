"""The chat page in a real browser, where one is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.browser import Browser, find_browser
from tests.serving.conftest import Served

LAST = "[...document.querySelectorAll('.message')].at(-1)"
IDLE = "document.getElementById('send').textContent === 'Send'"


@pytest.fixture
def page(served: Served, tmp_path: Path) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with Browser(program, tmp_path) as browser:
        browser.call("Page.navigate", url=served.address)
        browser.wait_for("document.getElementById('model')?.textContent === 'tiny'")
        yield browser


@pytest.mark.slow
def test_questions_by_hand(served: Served, page: Browser) -> None:
    """Written and sent with the keyboard; what is shown is what the server answers; markup stays text."""
    page.run("document.getElementById('temperature').value = 0; document.getElementById('tokens').value = 12")
    for text in ("<img src=x onerror=\"document.title='run'\">", "7*6?"):
        page.run("document.getElementById('clear').click(); document.getElementById('text').focus()")
        assert page.run("document.querySelectorAll('.message').length") == 0
        page.write(text)
        page.wait_for(f"document.querySelectorAll('.assistant').length === 1 && {IDLE}")
        body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 12}
        status, answer = served.post("/v1/chat/completions", body)
        assert status == 200, answer
        content = answer["choices"][0]["message"]["content"]
        assert page.run(f"{LAST}.querySelector(':scope > span').textContent") == content and content
        assert page.run("document.querySelector('.user').textContent") == text
    assert page.run("document.images.length") == 0 and page.run("document.title") == "megatron_ring"


@pytest.mark.slow
def test_an_answer_is_stopped_and_a_refusal_is_shown(served: Served, page: Browser) -> None:
    # Drawn at random it would sometimes end by itself. Greedily it is as long as the context, which the server says too.
    body = {"messages": [{"role": "user", "content": "1+1?"}], "temperature": 0}
    assert served.post("/v1/chat/completions", body)[1]["choices"][0]["finish_reason"] == "length"
    page.run("document.getElementById('temperature').value = 0; document.getElementById('text').focus()")
    page.write("1+1?")
    page.wait_for("document.querySelector('.assistant > span')?.textContent.length > 3")
    page.run("document.getElementById('send').click()")
    page.wait_for(f"{LAST}.className === 'message error'")
    assert page.run(f"{LAST}.textContent") == "stopped" and page.run(IDLE)
    page.run("document.getElementById('tokens').value = 5000; document.getElementById('text').focus()")
    page.write("again")
    page.wait_for(f"{LAST}.className === 'message error' && {LAST}.textContent !== 'stopped'")
    assert "5000" in page.run(f"{LAST}.textContent")
