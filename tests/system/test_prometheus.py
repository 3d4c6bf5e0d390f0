"""A real Prometheus watches the real services while people talk: all that dashboards and rules ask
for is there.

`MINMO_PICTURES=docs .venv/bin/pytest tests/system/test_prometheus.py` talks for longer and draws
the dashboards into that folder.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from aiohttp import ClientSession

from minmo.bench.lines import GatewayLine, GrpcLine, Line, Question
from minmo.bench.user import Habits, SimulatedUser, Turn
from minmo.client import Recording, Target, speech
from minmo.stack import scrape
from minmo.stack.stack import Stack
from tests import promql
from tests.prometheus import Prometheus, prometheus
from tests.system.conftest import QUESTION, ROOT, SAME_LOOP
from tools.dashboards import draw, live
from tools.dashboards.live import Source, Span

pytestmark = [SAME_LOOP, pytest.mark.timeout(300)]

CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yaml"
PICTURES = os.environ.get("MINMO_PICTURES")
SCRAPE_SECONDS = 1.0
WINDOW_SECONDS = 30.0 if PICTURES else 4.0
"""Of rates: few scrapes, for a load of half a minute."""
TALK_SECONDS = 120.0 if PICTURES else 0.0
"""How long is talked; as long as it takes to see everything at least."""
LONGEST_SECONDS = 240.0
HABITS = Habits(think_seconds=0.5, interrupt_share=0.3 if PICTURES else 0.5)
TURNS = 4 if PICTURES else 1
"""Of a conversation without a gateway."""
ANSWER_TOKENS = 30
Enough = Callable[[list[Turn]], bool]
DRAWN = ("overview", "conversation")
SEEN_SECONDS = 15.0
"""Longest wait for Prometheus to have seen the end of the load and to have applied its rules."""

# What half a minute in which nothing breaks does not show: a panel, or one query of it, and what
# would give it data.
NO_DATA = {
    "conversation: Stages, median C": "aligned mode: the stage embed",
    "conversation: Stages, p95 C": "aligned mode: the stage embed",
    "conversation: Silence within answers, mean of those that had one A": "audio that comes late",
    "orchestrator: Silence within answers A": "audio that comes late",
    "orchestrator: Time until a lost service was back, p95 A": "a replica that dies",
    "voice-decoder: Speech tokens and chunks, a second A": "a neural voice: mini speaks with Pico",
    "voice-decoder: Speech tokens and chunks, a second B": "a neural voice: mini speaks with Pico",
    "voice-decoder: Time of a step, mean A": "a neural voice: mini speaks with Pico",
    "voice-decoder: Time of a step, mean B": "a neural voice: mini speaks with Pico",
}


@dataclass(frozen=True)
class Watched:
    """What Prometheus saw of the load.

    Attributes:
        server: Prometheus.
        span: the time of the load, and a little around it.
        ended: when the last one fell silent.
    """

    server: Prometheus
    span: Span
    ended: float


def configuration(folder: Path, targets: Path) -> Path:
    """The configuration for a plain host, in a hurry, and with paths of a test."""
    config = yaml.safe_load(CONFIG.read_text())
    config["global"] = dict.fromkeys(
        ("scrape_interval", "scrape_timeout", "evaluation_interval"), f"{SCRAPE_SECONDS:g}s"
    )
    config["rule_files"] = [str(CONFIG.parent / path) for path in config["rule_files"]]
    config["scrape_configs"][0]["file_sd_configs"][0]["files"] = [str(targets)]
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


async def talk(line: Line, number: int, question: Question, enough: Enough) -> None:
    """Somebody asks, listens, and now and then interrupts, until there was enough of it."""
    turns: list[Turn] = []

    def over(turn: Turn) -> None:
        turns.append(turn)
        if enough(turns):
            user.leave()

    user = SimulatedUser(number, line, [question], HABITS, random.Random(number), over)
    async with asyncio.timeout(LONGEST_SECONDS):
        await user.run()
    assert user.lost is None


async def talk_to_the_gateway(address: str, question: Question, ends: float) -> None:
    """Hears one answer at least, and speaks over one."""

    def enough(turns: list[Turn]) -> bool:
        outcomes = {turn.outcome for turn in turns}
        return {"answered", "interrupted"} <= outcomes and time.time() > ends

    async with ClientSession() as web:
        await talk(GatewayLine([address], web, None, ANSWER_TOKENS), 0, question, enough)


async def talk_to_the_orchestrator(target: Target, question: Question, ends: float) -> None:
    """Has two conversations at least."""
    for number in itertools.count(1):
        line = GrpcLine(target, ANSWER_TOKENS)
        await talk(line, number, question, lambda turns: len(turns) >= TURNS)
        if number >= 2 and time.time() > ends:
            return


async def seen(server: Prometheus, targets: int, after: float) -> None:
    """Waits until so many targets were scraped, and all rules applied, after a time."""
    deadline = time.monotonic() + SEEN_SECONDS
    while True:
        scraped = await server.query(f"timestamp(up) > {after} and up == 1")
        groups = (await server.get("rules"))["groups"]
        applied = all(_unix(group["lastEvaluation"]) > after + SCRAPE_SECONDS for group in groups)
        if len(scraped) == targets and groups and applied:
            return
        assert time.monotonic() < deadline, await server.query("up")
        await asyncio.sleep(0.2)


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def watched(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    """Prometheus, after a small load that it has watched."""
    folder = tmp_path_factory.mktemp("prometheus")
    targets = folder / "minmo.json"
    scrape.write(targets, stack.metrics_urls)
    recording = Recording.read(QUESTION)
    question = Question.of(recording)
    target = Target(stack.addresses["orchestrator"])
    async with prometheus(configuration(folder, targets), folder) as server:
        count = len(stack.metrics_urls)
        await seen(server, count, time.time())
        began = time.time()
        ends = began + TALK_SECONDS
        async with asyncio.TaskGroup() as load:
            load.create_task(talk_to_the_gateway(stack.addresses["gateway"], question, ends))
            load.create_task(talk_to_the_orchestrator(target, question, ends))
            load.create_task(speech.transcribe(target, recording))
        ended = time.time()
        settled = ended + 2 * SCRAPE_SECONDS
        await seen(server, count, settled)
        # A rate wants a value from before the first event.
        span = Span(began - WINDOW_SECONDS, settled, SCRAPE_SECONDS, WINDOW_SECONDS)
        yield Watched(server, span, ended)


def has_data(found: list[live.Line]) -> bool:
    """Whether there is any value that is a number."""
    return any(not math.isnan(value) for line in found for value in line.values)


@pytest.mark.parametrize("path", sorted(draw.FOLDER.glob("*.json")), ids=lambda path: path.stem)
async def test_there_is_data_behind_every_panel(watched: Watched, path: Path) -> None:
    dashboard = live.load(path)

    def without() -> list[str]:
        missing = []
        with Source(watched.server.url) as source:
            chosen = live.choose_all(source, dashboard)
            for panel in live.panels(dashboard):
                lines = live.lines(source, panel, chosen, watched.span)
                for target, found in zip(panel["targets"], lines, strict=True):
                    where = f"{path.stem}: {panel['title']} {target['refId']}"
                    if not has_data(found) and where not in NO_DATA:
                        missing.append(where)
        return missing

    assert await asyncio.to_thread(without) == []


async def test_every_rule_is_applied_without_an_error(watched: Watched) -> None:
    groups: list[dict[str, Any]] = (await watched.server.get("rules"))["groups"]
    applied = [rule for group in groups for rule in group["rules"]]
    assert len(applied) == len(promql.rules())
    assert {rule["name"]: rule.get("lastError") for rule in applied if rule["health"] != "ok"} == {}


async def test_every_recording_rule_gives_numbers(watched: Watched) -> None:
    recorded = {
        (rule["record"], str(rule.get("labels", {}).get("of", "")))
        for rule in promql.rules()
        if "record" in rule
    }
    missing = []
    for name, of in sorted(recorded):
        chosen = f'{name}{{of="{of}"}}' if of else name
        found = await watched.server.query(f"last_over_time({chosen}[5m])")
        if all(math.isnan(float(sample["value"][1])) for sample in found):
            missing.append(chosen)
    assert missing == []


async def test_nobody_is_alarmed_while_all_is_well(watched: Watched) -> None:
    alerts = (await watched.server.get("alerts"))["alerts"]
    assert [alert["labels"] for alert in alerts if alert["state"] == "firing"] == []


@pytest.mark.skipif(PICTURES is None, reason="draws, into the folder that $MINMO_PICTURES names")
async def test_pictures_are_drawn(watched: Watched) -> None:
    out, url = Path(str(PICTURES)), watched.server.url
    span = replace(watched.span, end=watched.ended)
    await asyncio.to_thread(draw.draw, DRAWN, url, out, span)
    assert all((out / f"dashboard-{name}.png").stat().st_size < 200_000 for name in DRAWN)
