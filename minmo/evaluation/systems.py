"""The systems that are compared, each of one interface: a clip's samples to what was heard."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from minmo.audio.pcm import Samples
from minmo.engine.finding_pieces import Heard
from minmo.engine.listening import Recogniser, Schedule
from minmo.evaluation.clips import Clip
from minmo.evaluation.modules import ALIGNED, Listener

CHUNK_SAMPLES = 320
"""What a client sends at once: 20 ms."""

# Speech embeddings in which pieces are looked for at once: ten seconds with those of `mini`.
_TOGETHER = 208


@dataclass(frozen=True)
class Turn:
    """What a user's turn holds for the LLM, and what it cost to hear it.

    Attributes:
        text: the words, as people read them; what the LLM reads where there are no embeddings.
        embeddings: `[positions, width]` that the LLM reads instead of text, or None.
        compute_s: all computation.
        latency_s: computation behind the last 20 ms of sound; None where nothing was heard.
    """

    text: str
    embeddings: Tensor | None = None
    compute_s: float = 0.0
    latency_s: float | None = None


class Part(NamedTuple):
    """What is heard with the next 20 ms.

    Attributes:
        heard: pieces that are over.
        came: `time.perf_counter` when that sound was there.
        is_last: whether the clip ends with it.
    """

    heard: Heard
    came: float
    is_last: bool


class System(Protocol):
    """Listens to a clip."""

    @property
    def name(self) -> str:
        """In tables."""

    @property
    def uses(self) -> Sequence[str]:
        """Modules that it runs, as `minmo.evaluation.modules.Source` names them."""

    def listen(self, clip: Clip, samples: Samples) -> Turn:
        """What the LLM, or a reader, gets of it.

        Args:
            clip: what is known of it; only `TrueText` looks at its text.
            samples: `[samples]` at 16 kHz.
        """


class Aligned:
    """The aligned path as the service runs it: 20 ms at a time, with the state of a stream.

    Args:
        listener: its modules.
    """

    name = "aligned"
    uses: Sequence[str] = ALIGNED

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def listen(self, clip: Clip, samples: Samples) -> Turn:
        """Streams the clip."""
        start = time.perf_counter()
        heard, came = _nothing(self._listener), start
        for part in self.parts(samples):
            heard, came = heard.followed_by(part.heard), part.came
        end = time.perf_counter()
        text = self._listener.to_text(heard.tokens)
        return Turn(text, heard.embeddings, end - start, end - came)

    def parts(self, samples: Samples) -> Iterator[Part]:
        """What is heard with each 20 ms of a clip; the last of them also ends it."""
        embedder = self._listener.ears.embedder()
        last = max(0, (len(samples) - 1) // CHUNK_SAMPLES * CHUNK_SAMPLES)
        for begin in range(0, last, CHUNK_SAMPLES):
            came = time.perf_counter()
            yield Part(embedder.process(samples[begin : begin + CHUNK_SAMPLES]), came, False)
        came = time.perf_counter()
        heard = embedder.process(samples[last:])
        yield Part(heard.followed_by(embedder.finish(len(samples))), came, True)


class WholeClip:
    """The aligned path over the whole clip at once.

    Args:
        listener: its modules.
        full_attention: whether every frame sees the whole clip, as the encoder was published. The
            weights are adapted to the mask of the stream: it tells what the mask costs only as far
            as they can still do without it.
    """

    uses: Sequence[str] = ALIGNED

    def __init__(self, listener: Listener, *, full_attention: bool = False) -> None:
        self.name = "aligned, full attention" if full_attention else "aligned, whole clip"
        self._listener, self._full = listener, full_attention
        self._schedule = Schedule.of(listener.ears.encoder, listener.ears.projector)

    @torch.inference_mode()
    def listen(self, clip: Clip, samples: Samples) -> Turn:
        """Encodes the clip, with the silence behind it that a stream ends with."""
        start = time.perf_counter()
        schedule, ears = self._schedule, self._listener.ears
        encoder, end = ears.encoder, schedule.padded(len(samples))
        if not end:
            return Turn("", _nothing(self._listener).embeddings)
        blocks = -(-(end + schedule.look_ahead) // schedule.step)
        padded = np.pad(samples, (0, blocks * schedule.step - len(samples)))
        clips = torch.from_numpy(padded)[None]
        frames = encoder.forward(clips) if self._full else encoder.forward_causal(clips)
        if not self._full:
            # A stream gives whole blocks only.
            block = schedule.step // encoder.samples_per_frame
            frames = frames[:, : frames.shape[1] // block * block]
        embeddings, stride = ears.projector(frames), ears.projector.config.stride
        finder, heard = ears.finder(), _nothing(self._listener)
        # What reads along forgets the beginning of what is long.
        for begin in range(0, embeddings.shape[1], _TOGETHER):
            part = slice(begin, begin + _TOGETHER)
            whole = frames[:, stride * part.start : stride * part.stop]
            found = finder.find(whole, embeddings[:, part], silent=False)
            heard = heard.followed_by(found)
        heard = heard.followed_by(finder.finish())
        count = sum(number * schedule.unit < end for number in heard.frames)
        seconds = time.perf_counter() - start
        text = self._listener.to_text(heard.tokens[:count])
        return Turn(text, heard.embeddings[:count], seconds, seconds)


class OwnDecoder:
    """The published voice encoder and its own decoder, when the clip has ended: the cascade.

    Args:
        recogniser: of the published weights.
        name: in tables.
    """

    uses: Sequence[str] = ("voice_encoder", "recognizer")

    def __init__(self, recogniser: Recogniser, name: str = "encoder's own decoder") -> None:
        self.name = name
        self._recogniser = recogniser

    def listen(self, clip: Clip, samples: Samples) -> Turn:
        """Recognises the clip."""
        start = time.perf_counter()
        text = self._recogniser.transcribe(samples)
        seconds = time.perf_counter() - start
        return Turn(text, None, seconds, seconds)


class PiecesAsText:
    """What the aligned path hears, but as text: what is gained or lost by embeddings.

    Args:
        aligned: the aligned path.
    """

    name = "pieces as text"
    uses: Sequence[str] = ALIGNED

    def __init__(self, aligned: Aligned) -> None:
        self._aligned = aligned

    def listen(self, clip: Clip, samples: Samples) -> Turn:
        """Streams the clip and keeps its words."""
        heard = self._aligned.listen(clip, samples)
        return Turn(heard.text, None, heard.compute_s, heard.latency_s)


class TrueText:
    """The text that was read out: the LLM without ears."""

    name = "text"
    uses: Sequence[str] = ()

    def listen(self, clip: Clip, samples: Samples) -> Turn:
        """Hears nothing."""
        return Turn(clip.text)


def _nothing(listener: Listener) -> Heard:
    return Heard(torch.zeros(0, listener.ears.head.width), [], [])
