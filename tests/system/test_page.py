"""The page in a real browser: it is spoken to, heard, interrupted, and cut off from its server.

`pytest -s tests/system/test_page.py -k silence` prints how long it takes to fall silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, expect

from minmo.client import Target, sessions
from minmo.stack.stack import Stack
from minmo.v1 import conversation_pb2
from tests.system import browser as chrome
from tests.system.conftest import (
    QUESTION,
    QUESTION_TEXT,
    ROOT,
    SAME_LOOP,
    normal,
    recognise,
    word_error_rate,
)

pytestmark = SAME_LOOP

WAIT_MS = 30_000
SILENT_MS = 150
"""Longest median from the server's decision to silence at the page's speaker."""
STOPS = 4
PHRASE_WORDS = 6


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    """A browser whose microphone hears a question when it is opened."""
    path = tmp_path_factory.mktemp("microphone") / "question.wav"
    chrome.write_microphone(path, 0.5, chrome.spoken(QUESTION), 60.0)
    expect.set_options(timeout=WAIT_MS)
    async with chrome.chromium(path) as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="session")
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """A user of the browser who has allowed the microphone."""
    context = await browser.new_context(bypass_csp=True, permissions=["microphone"])
    context.set_default_timeout(WAIT_MS)
    yield context
    await context.close()


@pytest.fixture
def url(stack: Stack) -> str:
    """Where the page is."""
    return f"http://{stack.addresses['gateway']}/"


async def type_text(page: Page, text: str) -> None:
    """Types as a user would."""
    await page.get_by_label("Type instead of speaking").fill(text)
    await page.get_by_role("button", name="Send").click()


async def set_up_story(page: Page) -> None:
    """Makes MinMo tell long stories to a user who wears headphones.

    The recording that is the microphone has no echo in it; cancelling one would cut words.
    """
    await page.get_by_role("button", name="Settings").click()
    await page.get_by_label("Instructions").fill("You tell long stories in many sentences.")
    await page.get_by_label("Cancel echo").uncheck()
    await page.get_by_role("button", name="Done").click()


async def session_of(page: Page, target: Target) -> conversation_pb2.Session:
    """What the server keeps of the page's conversation."""
    session_id = await page.evaluate("() => sessionStorage.getItem('minmo.session')")
    return await sessions.get_session(target, session_id)


async def words(page: Page, role: str) -> list[str]:
    """What the page shows of the user or the assistant, without what was not heard."""
    return list(
        await page.eval_on_selector_all(
            f"#words .{role} .words",
            "all => all.map((words) => words.firstChild?.textContent ?? '')",
        )
    )


async def reports(page: Page, count: int) -> None:
    """Waits until so many answers were heard, or cut off."""
    await expect(page.locator("#words .waterfall")).to_have_count(count)


async def test_a_question_is_spoken_and_the_answer_is_heard(
    context: BrowserContext, url: str, target: Target
) -> None:
    page = await chrome.open_page(context, url)
    await expect(page.get_by_text("Nothing is recorded.")).to_be_visible()
    await page.get_by_role("button", name="Talk").click()
    await reports(page, 1)

    (asked,), (answered,) = await words(page, "user"), await words(page, "assistant")
    assert word_error_rate(QUESTION_TEXT, asked) <= 0.2
    heard = await chrome.heard(page)
    assert word_error_rate(answered, await recognise(target, heard.samples, 24_000)) <= 0.3
    session = await session_of(page, target)
    assert [normal(turn.text) for turn in session.turns] == [normal(asked), normal(answered)]

    await page.locator(".waterfall summary").click()
    hops = await page.locator(".waterfall tbody th").all_inner_texts()
    assert {"end of turn", "recognise words", "voice", "network and speaker"} <= set(hops)
    await page.get_by_role("button", name="End", exact=True).click()
    await expect(page.locator("#status")).to_have_text("Off")


async def test_speaking_over_the_answer_stops_it_and_strikes_out_what_was_not_heard(
    context: BrowserContext, url: str, target: Target
) -> None:
    page = await chrome.open_page(context, url)
    await set_up_story(page)
    await type_text(page, "Tell me a long story about a ship.")
    await expect(page.locator("#status")).to_have_text("Speaking")
    await asyncio.sleep(1.5)  # somebody listens for a while, then interrupts
    await page.get_by_role("button", name="Talk").click()
    await reports(page, 1)

    told = (await words(page, "assistant"))[0]
    unheard = await page.locator("#words s").inner_text()
    assert told.strip()
    assert unheard.strip()
    (decided, _), *_ = await chrome.messages(page, "input_audio_buffer.speech_started")
    silent = await silent_from_ms(page, decided)
    heard = await chrome.heard(page)
    before = heard.samples[: heard.index_of(silent)]
    spoken = await recognise(target, before, 24_000)
    # What was said of a phrase counts as heard when its mark comes, at its end.
    assert -3 <= len(normal(spoken).split()) - len(normal(told).split()) <= PHRASE_WORDS

    await reports(page, 2)
    session = await session_of(page, target)
    assert normal(session.turns[1].text) == normal(told)
    assert session.turns[1].outcome == conversation_pb2.TURN_OUTCOME_INTERRUPTED
    assert word_error_rate(QUESTION_TEXT, (await words(page, "user"))[1]) <= 0.3
    assert normal(session.turns[3].text) == normal((await words(page, "assistant"))[1])


async def silent_from_ms(page: Page, decided_ms: float) -> float:
    """When the loudspeaker fell silent after a decision, once that can be heard."""
    async with asyncio.timeout(WAIT_MS / 1000):
        while True:
            heard = await chrome.heard(page)
            with contextlib.suppress(AssertionError):
                return heard.silent_from_ms(decided_ms)
            await asyncio.sleep(0.1)


async def test_silence_follows_the_decision_to_stop(context: BrowserContext, url: str) -> None:
    page = await chrome.open_page(context, url)
    await set_up_story(page)
    took = []
    for _ in range(STOPS):
        await type_text(page, "Tell me a long story about a ship.")
        await expect(page.locator("#status")).to_have_text("Speaking")
        await asyncio.sleep(0.7)
        # Not by the page's button, which needs no decision of the server's.
        await page.evaluate("""() => ears.socket.send('{"type": "response.cancel"}')""")
        await reports(page, 1)
        decided, done = (await chrome.messages(page, "response.done"))[-1]
        assert done["response"]["status"] == "cancelled"
        took.append(await silent_from_ms(page, decided) - decided)
        shown = await page.locator(".waterfall summary").inner_text()
        assert "after the decision to stop" in shown
        await page.get_by_role("button", name="New conversation").click()
        await expect(page.locator("#words li")).to_have_count(0)
    print(f"\nbarge-in to silence in the page: {', '.join(f'{one:.0f}' for one in took)} ms")
    assert statistics.median(took) <= SILENT_MS


async def test_the_connection_is_lost_and_regained_in_the_same_session(
    context: BrowserContext, url: str, target: Target
) -> None:
    async with Cable(url) as cable:
        page = await chrome.open_page(context, cable.url)
        await type_text(page, "What is the capital of France?")
        await reports(page, 1)
        before = await session_of(page, target)
        await cable.cut()
        await expect(page.get_by_role("alert")).to_contain_text("The connection is lost")
        await asyncio.sleep(0.5)
        await cable.mend()
        await expect(page.get_by_role("alert")).to_be_hidden()
        await type_text(page, "What is the capital of Italy?")
        await reports(page, 2)
        after = await session_of(page, target)
        said = [await words(page, role) for role in ("user", "assistant")]
        # Another page load in the same tab goes on, too.
        await page.reload()
        await type_text(page, "What is the capital of Spain?")
        await reports(page, 1)
        last = await session_of(page, target)
    assert after.session_id == before.session_id == last.session_id
    shown = [text for pair in zip(*said, strict=True) for text in pair]
    assert [normal(turn.text) for turn in after.turns] == [normal(text) for text in shown]
    assert len(after.turns) == 4
    assert len(last.turns) == 6


async def test_it_can_be_used_by_keyboard_and_screen_reader(
    context: BrowserContext, url: str
) -> None:
    page = await chrome.open_page(context, url)
    await expect(page.get_by_role("heading", name="MinMo", level=1)).to_be_visible()
    order = []
    for _ in range(6):
        await page.keyboard.press("Tab")
        order.append(await page.evaluate("() => document.activeElement.id"))
    assert order[1:5] == ["open-settings", "text", "", "talk"]
    assert await nameless(page) == []
    await page.get_by_role("button", name="Settings").press("Enter")
    await expect(page.get_by_role("dialog", name="Settings")).to_be_visible()
    assert await nameless(page) == []
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)

    await page.get_by_label("Type instead of speaking").focus()
    await page.keyboard.type("What is the capital of France?")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("button", name="Stop answer")).to_be_enabled()
    await expect(page.get_by_role("img", name="MinMo is speaking.")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("img", name="Nobody is speaking.")).to_be_visible()
    await expect(page.get_by_role("button", name="Stop answer")).to_be_disabled()
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        assert await weakest_contrast(page) >= 4.5


async def nameless(page: Page) -> list[str]:
    """Roles of controls that a screen reader could not name."""
    devtools = await page.context.new_cdp_session(page)
    tree = await devtools.send("Accessibility.getFullAXTree")
    await devtools.detach()
    wanted = {"button", "textbox", "combobox", "checkbox", "link", "dialog", "img", "heading"}
    return [
        node["role"]["value"]
        for node in tree["nodes"]
        if not node.get("ignored")
        and node.get("role", {}).get("value") in wanted
        and not node.get("name", {}).get("value", "").strip()
    ]


async def weakest_contrast(page: Page) -> float:
    """Lowest contrast of text that is shown against the page (WCAG 2), of enabled elements."""
    return float(
        await page.evaluate("""() => {
          const light = (colour) => {
            const [r, g, b] = colour.match(/[0-9.]+/g).map((part) => {
              const value = part / 255;
              return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const paper = light(getComputedStyle(document.documentElement).backgroundColor);
          const kinds = "p, .speaker, .lane-names span, summary, .quiet";
          const texts = [...document.querySelectorAll(kinds)]
            .filter((element) => element.checkVisibility() && !element.disabled);
          return Math.min(...texts.map((element) => {
            const ink = light(getComputedStyle(element).color);
            return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
          }));
        }""")
    )


async def test_without_a_microphone_it_says_so_and_can_be_typed_to(
    browser: Browser, url: str
) -> None:
    # Without ears, so that the page lives under its own security policy, too.
    context = await browser.new_context()
    page = await context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(error.message))
    await page.goto(url)
    await page.get_by_role("button", name="Talk").click()
    await expect(page.get_by_role("alert")).to_contain_text("does not let this page use")
    await type_text(page, "What is the capital of France?")
    await expect(page.locator("#words .assistant")).to_contain_text("Paris")
    await expect(page.locator("#status")).to_have_text("Speaking")
    assert complaints == []
    await context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def locked_url(stack: Stack, tmp_path: Path) -> AsyncIterator[str]:
    """Where the page is of a gateway that wants an API key."""
    ready = tmp_path / "ready.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.gateway", "--port", "0", "--metrics-port", "-1"),
        *("--orchestrator-address", stack.addresses["orchestrator"], "--ready-file", str(ready)),
        cwd=ROOT,
        env={**os.environ, "MINMO_TOKEN": "sesame"},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(WAIT_MS / 1000):
            while not ready.exists():
                await asyncio.sleep(0.05)
        yield f"http://{json.loads(ready.read_text())['address']}/"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def test_a_key_is_asked_for_where_the_server_wants_one(
    context: BrowserContext, locked_url: str
) -> None:
    page = await chrome.open_page(context, locked_url)
    key = page.get_by_label("This server asks for an API key")
    await expect(key).to_be_hidden()
    await type_text(page, "What is the capital of France?")
    await expect(key).to_be_focused()
    await key.fill("open")
    await key.press("Enter")
    await expect(page.get_by_role("alert")).to_contain_text("Incorrect API key")
    await key.fill("sesame")
    await key.press("Enter")
    await expect(page.locator("#words .assistant")).to_contain_text("Paris")
    kept = await page.evaluate("() => [{...localStorage}, sessionStorage.getItem('minmo.key')]")
    assert "sesame" not in json.dumps(kept[0])
    assert kept[1] == "sesame"


async def test_a_browser_that_cannot_play_gets_answers_in_writing(
    context: BrowserContext, url: str
) -> None:
    await context.add_init_script("delete window.AudioWorkletNode")
    page = await context.new_page()
    await page.goto(url)
    await expect(page.get_by_role("alert")).to_contain_text("type below")
    await type_text(page, "What is the capital of France?")
    await expect(page.locator("#words .assistant")).to_contain_text("Paris")
    # There is a session, and so its voices are there to choose from.
    voices = await page.locator("#voice option").all_inner_texts()
    assert voices[0] == "The server’s"
    assert len(voices) > 1


@pytest.mark.parametrize("rate_hz", [44_100, 48_000])
async def test_the_microphone_is_heard_at_24_kHz_whatever_its_rate(
    context: BrowserContext, url: str, rate_hz: int
) -> None:
    page = await context.new_page()
    await page.goto(url)
    loudness = []
    for tone_hz in (1000, 16_000):
        frames = await page.evaluate(
            """async ([rate, tone]) => {
              const context = new OfflineAudioContext(1, rate, rate);
              await context.audioWorklet.addModule("capture.worklet.js");
              const source = new OscillatorNode(context, { frequency: tone });
              const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
              const samples = [];
              capture.port.onmessage = ({ data }) => samples.push(...data);
              source.connect(capture);
              source.start();
              await context.startRendering();
              await new Promise((resolve) => setTimeout(resolve, 100));
              return samples;
            }""",
            [rate_hz, tone_hz],
        )
        samples = np.array(frames, dtype=np.float64) / 32767
        assert len(samples) % 480 == 0
        assert abs(len(samples) - 24_000) <= 960
        loudness.append(float(np.sqrt((samples[480:] ** 2).mean())))
    assert loudness[0] == pytest.approx(np.sqrt(0.5), rel=0.02)
    assert loudness[1] < 0.005  # too high for 24 kHz: it must not come back as another tone


async def test_stopped_playback_is_dropped_at_once_and_counted(
    context: BrowserContext, url: str
) -> None:
    page = await context.new_page()
    await page.goto(url)
    played, told = await page.evaluate(
        """async () => {
          const context = new OfflineAudioContext(1, 24000, 24000);
          await context.audioWorklet.addModule("playback.worklet.js");
          const node = new AudioWorkletNode(context, "playback", {
            numberOfInputs: 0, outputChannelCount: [1],
          });
          const told = [];
          node.port.onmessage = ({ data }) => told.push(data);
          node.connect(context.destination);
          const add = (item, seconds) => node.port.postMessage(
            { kind: "audio", item, samples: new Float32Array(24000 * seconds).fill(0.5) });
          const settle = () => new Promise((resolve) => setTimeout(resolve, 50));
          const at = (time, happens) => context.suspend(time).then(async () => {
            happens();
            await settle();
            context.resume();
          });
          at(0, () => { add("first", 1); add("second", 0.1); });
          at(0.25, () => {
            node.port.postMessage({ kind: "stop", item: "first" });
            node.port.postMessage({ kind: "end", item: "second" });
          });
          const rendered = await context.startRendering();
          await settle();
          return [[...rendered.getChannelData(0)], told];
        }"""
    )
    by_kind = {f"{one['kind']} {one['item']}": one for one in told if one["kind"] != "progress"}
    assert list(by_kind) == [
        "started first",
        "stopped first",
        "started second",
        "finished second",
    ]
    samples = np.array(played)
    stopped = by_kind["stopped first"]
    assert stopped["played"] == pytest.approx(0.25 * 24_000, abs=256)
    assert by_kind["finished second"]["played"] == 2400
    # Nothing is lost or made up: what was told as played was played.
    assert np.count_nonzero(samples) == pytest.approx(stopped["played"] + 2400, abs=1)


@pytest.mark.skipif(
    "MINMO_PICTURES" not in os.environ,
    reason="takes the pictures of docs/page.md, into the folder that $MINMO_PICTURES names",
)
async def test_pictures_are_taken(browser: Browser, url: str) -> None:
    folder = Path(os.environ["MINMO_PICTURES"])
    size = {"width": 1000, "height": 900}
    context = await browser.new_context(
        bypass_csp=True, permissions=["microphone"], viewport=size, color_scheme="light"
    )
    page = await chrome.open_page(context, url)
    await set_up_story(page)
    await type_text(page, "Tell me a story about a ship.")
    await expect(page.locator("#status")).to_have_text("Speaking")
    await asyncio.sleep(1.5)
    await page.get_by_role("button", name="Talk").click()
    await reports(page, 1)
    await expect(page.locator("#status")).to_have_text("Speaking")
    await asyncio.sleep(0.5)
    await page.screenshot(path=folder / "page-light.png")
    await reports(page, 2)
    await page.locator(".waterfall summary").last.click()
    for name, scheme, width in (("dark", "dark", 1000), ("narrow", "light", 390)):
        await page.emulate_media(color_scheme=scheme)
        await page.set_viewport_size({"width": width, "height": 800})
        await asyncio.sleep(1.0)  # until all is drawn
        await page.evaluate("() => window.scrollTo(0, 1e6)")
        await page.screenshot(path=folder / f"page-{name}.png")
    await context.close()


class Cable:
    """What a connection to a server goes through, and can be cut.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        self._to = urlsplit(url)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._ends: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """The server, through the cable."""
        return f"http://127.0.0.1:{self._port}/"

    async def __aenter__(self) -> Cable:
        await self.mend()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    async def cut(self) -> None:
        """Ends what goes through it, and takes nothing new."""
        assert self._server is not None
        self._server.close()
        for end in self._ends:
            end.transport.abort()

    async def mend(self) -> None:
        """Takes connections, at the same port as before."""
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._to.hostname, self._to.port)
        ends = {writer, back}
        self._ends |= ends
        try:
            await asyncio.gather(_pour(reader, back), _pour(there, writer))
        finally:
            self._ends -= ends


async def _pour(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65536):
            to.write(data)
            await to.drain()
    to.close()
