"""The voice decoder's engine: one thread that computes, and callers that wait for audio.

Callers come from any thread. One lock guards every decision; it is open while the modules compute.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from minmo.engine.threads import apart
from minmo.engine.voice import HiddenStates, Piece, Query, SpeakingError, TextToken, TokenError
from minmo.engine.voice_decoder.modules import VoiceModules
from minmo.engine.voice_decoder.runner import Runner
from minmo.engine.voice_decoder.scheduler import Limits, Readings, Scheduler, Step
from minmo.engine.voice_decoder.sequence import Rates, SpeechSequence, State
from minmo.model.speaker import Speaker, SpeakerError

log = logging.getLogger(__name__)

_CHECK_SECONDS = 0.25


@dataclass(frozen=True)
class EngineOptions:
    """How much an engine takes on.

    Attributes:
        slots: utterances that are computed at once.
        context: positions of the voice token LM for each.
        max_waiting: further utterances that may wait for a slot.
        max_wait_seconds: how long they may.
        idle_seconds: an utterance whose caller is silent for so long fails.
        max_ahead_seconds: audio that a caller may leave untaken before its utterance pauses.
        step_deadline_seconds: longest wait of a caller for the next piece of audio.
        max_speech_per_vector: speech tokens for each text token, after which speech ends.
        piece: positions of a query that one step reads for one utterance.
        lanes: slots that token2wav steps together; None for one, or for all of them where steps
            are recorded. With one, on a CPU, audio is the same to the last bit whatever runs
            beside it; more make `mini` speak to twice as many people at once, and audio that may
            differ in its seventh digit. It has to divide `slots`.
        batched: whether steps are recorded, with fixed shapes; None where that is faster, on a
            GPU. A recorded step costs as much as the next power of two of those who need it.
    """

    slots: int = 8
    context: int = 2048
    max_waiting: int = 16
    max_wait_seconds: float = 5.0
    idle_seconds: float = 120.0
    max_ahead_seconds: float = 3.0
    step_deadline_seconds: float = 30.0
    max_speech_per_vector: int = 25
    piece: int = 32
    lanes: int | None = None
    batched: bool | None = None


@dataclass(frozen=True)
class Snapshot:
    """Figures of an engine. Those from `opened` on only grow.

    Attributes:
        slots: utterances that can be computed at once.
        slots_in_use: utterances that are.
        waiting: utterances that wait for a slot.
        opened: utterances that came.
        refused: of these, found no slot in time.
        failed: of these, failed in other ways.
        token_steps: of the voice token LM.
        token_seconds: time of these steps together.
        tokens: speech tokens that were drawn.
        chunk_steps: of token2wav.
        chunk_seconds: time of these steps together.
        chunks: that they made.
        audio_seconds: that they made.
    """

    slots: int = 0
    slots_in_use: int = 0
    waiting: int = 0
    opened: int = 0
    refused: int = 0
    failed: int = 0
    token_steps: int = 0
    token_seconds: float = 0.0
    tokens: int = 0
    chunk_steps: int = 0
    chunk_seconds: float = 0.0
    chunks: int = 0
    audio_seconds: float = 0.0

    @property
    def compute_seconds(self) -> float:
        """Time of all steps together."""
        return self.token_seconds + self.chunk_seconds

    @property
    def real_time_factor(self) -> float:
        """Compute time over audio time; 0 before there is audio."""
        return self.compute_seconds / self.audio_seconds if self.audio_seconds else 0.0


class VoiceEngine:
    """Batched, streaming synthesis for many utterances.

    Args:
        modules: what speaks.
        options: how much to take on.

    Attributes:
        modules: as given.
        options: as given.
    """

    def __init__(self, modules: VoiceModules, options: EngineOptions) -> None:
        self.modules, self.options = modules, options
        lm, flow = modules.lm.config, modules.flow.config
        batched = modules.device.type == "cuda" if options.batched is None else options.batched
        lanes = options.lanes or (options.slots if batched else 1)
        # Of everybody the last speech token and a group of text, or a piece of a query.
        rows = max(options.slots * (lm.text_group + 2), options.piece)
        piece = max(options.piece, lm.text_group + lm.speech_group + 1)

        @torch.inference_mode()
        def runner() -> Runner:
            limit = max(rows, piece)
            return Runner(modules, options.slots, options.context, limit, lanes, batched)

        self._runner = apart(runner)
        self._rates = Rates(
            text_group=lm.text_group,
            speech_group=lm.speech_group,
            end=lm.end,
            context=options.context,
            chunk_tokens=flow.chunk_tokens,
            look_ahead_tokens=flow.look_ahead_tokens,
            samples_per_token=modules.samples_per_token,
            sample_rate_hz=modules.vocoder.config.sample_rate_hz,
            max_speech_per_vector=options.max_speech_per_vector,
        )
        limits = Limits(
            slots=options.slots,
            max_waiting=options.max_waiting,
            max_wait_seconds=options.max_wait_seconds,
            idle_seconds=options.idle_seconds,
            max_ahead_seconds=options.max_ahead_seconds,
            max_waiting_tokens=2 * flow.chunk_tokens + flow.look_ahead_tokens,
            rows=max(rows, piece),
            piece=piece,
            chunks=options.slots if lanes > 1 else 1,
        )
        self._scheduler = Scheduler(limits, time.monotonic)
        self._counts = Snapshot(slots=options.slots)
        self._lock = threading.Lock()
        self._work_came = threading.Condition(self._lock)
        self._work_done = threading.Condition(self._lock)
        self._stopping = False
        self._step_began: float | None = None
        self._thread = threading.Thread(target=self._run, name="voice-engine", daemon=True)

    def start(self) -> None:
        """Starts to work."""
        self._thread.start()

    def stop(self) -> None:
        """Fails what waits or runs, and ends the thread."""
        with self._lock:
            self._stopping = True
            self._work_came.notify()
        if self._thread.is_alive():
            self._thread.join()

    def snapshot(self) -> Snapshot:
        """The figures now; from any thread."""
        with self._lock:
            return replace(
                self._counts,
                slots_in_use=self._scheduler.slots_in_use,
                waiting=self._scheduler.waiting,
            )

    @property
    def longest_query(self) -> int:
        """Positions of a query at most."""
        # The start, a first group of text, its speech, and something of the end must fit as well.
        rest = 2 * (self._rates.text_group + self._rates.speech_group)
        return max(0, self.options.context - rest)

    @property
    def step_seconds(self) -> float:
        """How long the step has been running that runs now; 0 if none does. From any thread."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    def check(self, speaker: Speaker) -> None:
        """Says whether the modules can speak as somebody.

        Raises:
            SpeakerError: they cannot.
        """
        flow, rates = self.modules.flow.config, self._rates
        if len(speaker.embedding) != flow.speaker_width:
            raise SpeakerError(
                f"speaker {speaker.name!r} has an embedding of {len(speaker.embedding)} numbers; "
                f"this voice reads {flow.speaker_width}"
            )
        prompt = speaker.prompt
        if prompt is None:
            return
        count = len(prompt.speech_tokens)
        if not count or count % flow.chunk_tokens:
            raise SpeakerError(
                f"the prompt of speaker {speaker.name!r} has {count} speech tokens; give a "
                f"multiple of {flow.chunk_tokens}, as many as a chunk has"
            )
        if max(prompt.speech_tokens) >= rates.end or min(prompt.speech_tokens) < 0:
            raise SpeakerError(f"speech tokens of a prompt are 0 to {rates.end - 1}")
        vocabulary = self.modules.vocabulary
        reads_text = self.modules.semantic is None
        if reads_text and any(not 0 <= token < vocabulary for token in prompt.text_tokens):
            raise SpeakerError(
                f"the prompt of speaker {speaker.name!r} has text token "
                f"{max(prompt.text_tokens)}; this voice reads 0 to {vocabulary - 1}"
            )
        if prompt.mel.shape[1] != flow.mel_bins:
            raise SpeakerError(
                f"the prompt's mel has {prompt.mel.shape[1]} bins; this voice has {flow.mel_bins}"
            )

    # --- an utterance

    def open(self, speaker: Speaker, seed: int = 0, query: Query | None = None) -> SpeechSequence:
        """Starts an utterance.

        Args:
            speaker: who speaks, one that `check` has let through.
            seed: of the draws: one seed gives one audio.
            query: what the user has said, if the voice is to know it.

        Raises:
            TokenError: the query is too long.
            VoiceBusyError: too many others wait already.
        """
        longest = self.longest_query
        if query is not None and len(query.embeddings) > longest:
            raise TokenError(
                f"the query has {len(query.embeddings)} positions; the voice reads up to {longest}"
            )
        prompts_lm = self.modules.semantic is None and speaker.prompt is not None
        sequence = SpeechSequence(self._rates, speaker, seed, query, prompts_lm, time.monotonic())
        with self._lock:
            self._require_running()
            self._count(opened=1)
            try:
                self._scheduler.open(sequence)
            except Exception:
                self._count(refused=1)
                raise
            self._work_came.notify()
        return sequence

    def push(
        self,
        sequence: SpeechSequence,
        tokens: Sequence[TextToken],
        hidden_states: HiddenStates | None,
    ) -> None:
        """Takes an utterance's next text.

        Args:
            sequence: from `open`.
            tokens: in the order of the LLM.
            hidden_states: `[tokens, hidden_width]`; None if the voice reads none.

        Raises:
            TokenError: the voice does not read such tokens.
        """
        if not tokens:
            return
        width = self.modules.hidden_width
        _check_tokens(tokens, hidden_states, self.modules.vocabulary, width)
        states = np.array(hidden_states, np.float32) if width else None
        with self._lock:
            if sequence.state is State.FINISHED:
                return
            sequence.push(tokens, states, self._touched(sequence))
            self._work_came.notify()

    def end(self, sequence: SpeechSequence) -> None:
        """No more text follows."""
        with self._lock:
            if sequence.state is State.FINISHED:
                return
            self._touched(sequence)
            sequence.end()
            self._scheduler.ended(sequence)
            self._work_came.notify()
            self._work_done.notify_all()

    def next_piece(self, sequence: SpeechSequence) -> Piece | None:
        """Waits for an utterance's next piece.

        Returns:
            The piece, or None if it takes more text first, or the utterance is complete.

        Raises:
            VoiceBusyError: it got no slot in time.
            SpeakingError: it failed, or nothing came in time.
        """
        seconds = self.options.step_deadline_seconds
        with self._lock:
            sequence.callers += 1
            came = self._work_done.wait_for(lambda: _has_news(sequence), seconds)
            sequence.callers -= 1
            now = self._touched(sequence)
            if sequence.error is not None:
                raise sequence.error.with_traceback(None)
            if sequence.pieces:
                piece = sequence.take(now)
                # It may go on now, if it had paused.
                self._work_came.notify()
                return piece
            if not came:
                raise SpeakingError(f"no audio was made within {seconds:g} s")
            return None

    def close(self, sequence: SpeechSequence) -> None:
        """Nobody wants more of an utterance: within a step, others have its slot."""
        with self._lock:
            self._scheduler.close(sequence)
            self._work_came.notify()
            self._work_done.notify_all()

    def _touched(self, sequence: SpeechSequence) -> float:
        sequence.last_used = time.monotonic()
        return sequence.last_used

    def _require_running(self) -> None:
        if self._stopping:
            raise SpeakingError("the voice's engine has stopped")

    def _count(self, **more: float) -> None:
        counts = self._counts
        grown = {name: getattr(counts, name) + value for name, value in more.items()}
        self._counts = replace(counts, **grown)

    # --- the engine's thread

    def _run(self) -> None:
        with torch.inference_mode():
            while (step := self._next_step()) is not None:
                self._step_began = time.monotonic()
                try:
                    self._compute(step)
                except Exception:
                    log.exception("a step failed as a whole")
                    self._fail_all("the voice's engine failed; see its log")
                finally:
                    self._step_began = None
        self._fail_all("the voice's engine stops")

    def _next_step(self) -> Step | None:
        """Waits for something to do; None once the engine stops."""
        with self._lock:
            while not self._stopping:
                if late := self._scheduler.expire():
                    refused = sum(s.slot < 0 for s in late)
                    self._count(refused=refused, failed=len(late) - refused)
                    self._work_done.notify_all()
                if step := self._scheduler.plan():
                    return step
                self._work_done.notify_all()
                self._work_came.wait(_CHECK_SECONDS)
        return None

    def _compute(self, step: Step) -> None:
        began = time.perf_counter()
        if isinstance(step, Readings):
            drawn = self._runner.read(step)
            seconds = time.perf_counter() - began
            with self._lock:
                self._scheduler.finish_readings(step, drawn)
                tokens = sum(isinstance(token, int) for token in drawn)
                self._count(token_steps=1, token_seconds=seconds, tokens=tokens)
        else:
            made = self._runner.speak(step)
            seconds = time.perf_counter() - began
            with self._lock:
                self._scheduler.finish_chunks(step, made)
                samples = sum(len(piece) for piece in made if isinstance(piece, np.ndarray))
                self._count(
                    chunk_steps=1,
                    chunk_seconds=seconds,
                    chunks=len(made),
                    audio_seconds=samples / self._rates.sample_rate_hz,
                )
        with self._lock:
            items = step.items
            self._count(failed=sum(item.sequence.error is not None for item in items))
            self._work_done.notify_all()

    def _fail_all(self, message: str) -> None:
        with self._lock:
            self._scheduler.fail_all(message)
            self._work_done.notify_all()


def _has_news(sequence: SpeechSequence) -> bool:
    if sequence.pieces or sequence.state is State.FINISHED:
        return True
    return sequence.state is State.RUNNING and sequence.is_starved


def _check_tokens(
    tokens: Sequence[TextToken], hidden_states: HiddenStates | None, vocabulary: int, width: int
) -> None:
    for token in tokens:
        if not 0 <= token.id < vocabulary:
            raise TokenError(
                f"token {token.id} is none of the LLM that this voice reads: 0 to {vocabulary - 1}"
            )
    if not width:
        return
    found = (0, 0) if hidden_states is None else hidden_states.shape
    if found != (len(tokens), width):
        raise TokenError(
            f"{len(tokens)} tokens came with hidden states {found[0]} x {found[1]}; this voice "
            f"reads one row of {width} for each token"
        )
