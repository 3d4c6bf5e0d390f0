"""Chromium with a recorded microphone, and ears at its loudspeaker."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from minmo.audio.pcm import Samples
from minmo.audio.resample import resample
from tests import debian

MICROPHONE_HZ = 48_000
"""Rate of the recording that Chromium takes for a microphone."""
SPEAKER_HZ = 24_000
"""Rate that the page plays at."""
_PIECE = 1280

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

# Runs in the page before its own scripts. It hears what goes into the loudspeaker of every
# AudioContext, sample by sample, and when messages come from the server, on the page's clock.
_EARS = """
(() => {
  const worklet = `registerProcessor("ears", class extends AudioWorkletProcessor {
    constructor() { super(); this.kept = []; }
    process([[heard]]) {
      this.kept.push(...(heard ?? new Float32Array(128)));
      if (this.kept.length === 1280) {
        const end = currentTime + 128 / sampleRate;
        const samples = Float32Array.from(this.kept);
        this.port.postMessage({ samples, start: end - samples.length / sampleRate });
        this.kept = [];
      }
      return true;
    }
  });`;
  const ears = { pieces: [], messages: [], context: null, socket: null };
  window.ears = ears;
  const connect = AudioNode.prototype.connect;
  AudioNode.prototype.connect = function (to, ...rest) {
    if (to instanceof AudioDestinationNode && !ears.context) {
      ears.context = this.context;
      const url = URL.createObjectURL(new Blob([worklet], { type: "text/javascript" }));
      this.context.audioWorklet.addModule(url).then(() => {
        const node = new AudioWorkletNode(this.context, "ears", { numberOfOutputs: 0 });
        node.port.onmessage = ({ data }) => {
          // Now, as the two clocks drift apart when the audio falls behind.
          ears.pieces.push({ samples: data.samples, at: ears.at(data.start) });
        };
        connect.call(this, node);
      });
    }
    return connect.call(this, to, ...rest);
  };
  // When a context's time is heard, on the page's clock.
  ears.at = (time) => {
    const { currentTime, baseLatency, outputLatency } = ears.context;
    return performance.now() + 1000 * (time - currentTime + baseLatency + outputLatency);
  };
  const Socket = window.WebSocket;
  window.WebSocket = class extends Socket {
    constructor(...args) {
      super(...args);
      ears.socket = this;
      this.addEventListener("message", ({ data }) => {
        const event = JSON.parse(data);
        delete event.delta;
        ears.messages.push({ at: performance.now(), event });
      });
    }
  };
})();
"""

_HEARD = """
() => {
  const { pieces } = window.ears;
  const samples = new Float32Array(pieces.reduce((sum, piece) => sum + piece.samples.length, 0));
  let place = 0;
  for (const piece of pieces) {
    samples.set(piece.samples, place);
    place += piece.samples.length;
  }
  const bytes = new Uint8Array(samples.buffer);
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) {
    text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  }
  return { samples: btoa(text), times: pieces.map((piece) => piece.at) };
}
"""


@cache
def chromium_path() -> Path:
    """Where Chromium is: `$CHROMIUM`, or in PATH, or installed now where this is root on Debian.

    Skips the test if there is none.
    """
    named = os.environ.get("CHROMIUM")
    if named:
        return Path(named)
    found = debian.program(_NAMES, "chromium")
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium, or name one in $CHROMIUM")
    return found


def write_microphone(path: Path, *pieces: Samples | float) -> Path:
    """Writes what a microphone will hear.

    Args:
        pieces: float32 [samples] at `MICROPHONE_HZ`, or seconds of silence.
    """
    parts = [
        np.zeros(round(piece * MICROPHONE_HZ), dtype=np.float32)
        if isinstance(piece, float)
        else piece
        for piece in pieces
    ]
    soundfile.write(path, np.concatenate(parts), MICROPHONE_HZ, subtype="PCM_16")
    return path


def spoken(path: Path) -> Samples:
    """A recording, for `write_microphone`; float32 [samples]."""
    samples, rate_hz = soundfile.read(path, dtype="float32")
    return resample(samples, rate_hz, MICROPHONE_HZ)


@asynccontextmanager
async def chromium(microphone: Path) -> AsyncIterator[Browser]:
    """A browser.

    Args:
        microphone: recording of `write_microphone`; it is heard from its start, once, whenever a
            page opens the microphone that it was permitted.
    """
    arguments = [
        "--disable-gpu",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}%noloop",
    ]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium_path(), args=arguments, chromium_sandbox=False
        )
        try:
            yield browser
        finally:
            await browser.close()


@dataclass(frozen=True)
class Heard:
    """What has come out of a page's loudspeaker."""

    samples: Samples
    """float32 [samples], at `SPEAKER_HZ`."""
    times_ms: np.ndarray
    """When the first of each `_PIECE` samples was heard, on the page's clock; float64 [pieces]."""

    def index_of(self, time_ms: float) -> int:
        """The sample that is heard at a time on the page's clock, or the first."""
        piece = max(0, int(np.searchsorted(self.times_ms, time_ms, side="right")) - 1)
        later = round((time_ms - float(self.times_ms[piece])) * SPEAKER_HZ / 1000)
        return piece * _PIECE + min(max(0, later), _PIECE - 1)

    def time_ms(self, index: int) -> float:
        """When a sample is heard, on the page's clock."""
        piece = min(index // _PIECE, len(self.times_ms) - 1)
        return float(self.times_ms[piece]) + (index - piece * _PIECE) * 1000 / SPEAKER_HZ

    def silent_from_ms(self, after_ms: float, *, for_ms: float = 200.0) -> float:
        """When it fell silent, for at least `for_ms`, at or after a time on the page's clock.

        Raises AssertionError: it did not.
        """
        start = self.index_of(after_ms)
        loud = np.flatnonzero(np.abs(self.samples[start:]) > 0)
        wanted = round(for_ms * SPEAKER_HZ / 1000)
        ends = np.concatenate([[-1], loud])
        begins = np.concatenate([loud, [len(self.samples) - start]])
        gaps = np.flatnonzero(begins - ends > wanted)
        assert len(gaps), "the loudspeaker did not fall silent"
        silent = start + int(ends[gaps[0]]) + 1
        return self.time_ms(silent)


async def open_page(context: BrowserContext, url: str) -> Page:
    """The page, with ears at its loudspeaker; the context must bypass the page's CSP for them."""
    page = await context.new_page()
    await page.add_init_script(_EARS)
    await page.goto(url)
    return page


async def heard(page: Page) -> Heard:
    """What has come out of the loudspeaker so far."""
    got = await page.evaluate(_HEARD)
    samples = np.frombuffer(base64.b64decode(got["samples"]), dtype=np.float32)
    return Heard(samples, np.array(got["times"], dtype=np.float64))


async def messages(page: Page, kind: str) -> list[tuple[float, dict[str, Any]]]:
    """The server's messages of a type: when they came, on the page's clock, and what they say."""
    found = await page.evaluate("() => window.ears.messages")
    return [(one["at"], one["event"]) for one in found if one["event"]["type"] == kind]
