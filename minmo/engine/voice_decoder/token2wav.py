"""Computes token2wav's steps: a chunk of speech tokens in, audio out, for streams in slots."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from minmo.engine.graphs import GraphedCall
from minmo.engine.voice import Samples
from minmo.engine.voice_decoder.modules import VoiceModules
from minmo.engine.voice_decoder.scheduler import Problem
from minmo.engine.voice_decoder.sequence import MEL_FRAMES_PER_TOKEN, Chunk
from minmo.engine.voice_decoder.speaker import Speaker
from minmo.model.flow_matching import FlowMatchingState
from minmo.model.streaming import SlotState
from minmo.model.vocoder import VocoderState

log = logging.getLogger(__name__)

# Columns of a step's numbers behind the tokens.
_LENGTH, _AHEAD, _SKIPPED, _LAST = range(4)
_NUMBERS = 4


@dataclass(frozen=True)
class _Template:
    """A speaker's start: what token2wav remembers of the prompt, and the prompt's rest."""

    state: FlowMatchingState
    prompt_mel: Tensor


@dataclass
class _Memory(SlotState):
    """What token2wav knows of the streams in its slots.

    Attributes:
        speaker: `[slots, speaker_width]`.
        prompt_mel: `[slots, frames of a chunk, mel_bins]`, of the prompt's tokens in the next
            chunk; zeros behind them.
        flow: of flow matching.
        vocoder: of the vocoder.
    """

    speaker: Tensor
    prompt_mel: Tensor
    flow: FlowMatchingState
    vocoder: VocoderState


class _Lanes:
    """Slots that are stepped together.

    On a GPU always all of them, recorded, with shapes that never change; on a CPU those that have
    a chunk.
    """

    def __init__(self, modules: VoiceModules, width: int) -> None:
        self._flow, self._vocoder = modules.flow, modules.vocoder
        flow, device = modules.flow.config, modules.device
        dtype = next(modules.flow.parameters()).dtype
        frames = MEL_FRAMES_PER_TOKEN * flow.chunk_tokens
        self._memory = _Memory(
            torch.zeros(width, flow.speaker_width, device=device, dtype=dtype),
            torch.zeros(width, frames, flow.mel_bins, device=device, dtype=dtype),
            self._flow.initial_state(width, device=device, dtype=dtype),
            self._vocoder.initial_state(width, device=device, dtype=dtype),
        )
        self._frames = torch.arange(frames, device=device)
        columns = flow.chunk_tokens + flow.look_ahead_tokens + _NUMBERS
        self._records = device.type == "cuda"
        self._inputs = torch.zeros(width, columns, dtype=torch.long, pin_memory=self._records)
        # Where a stream ends, the vocoder has more to do.
        self._recorded = {
            ends: GraphedCall(partial(self._step, self._memory, ends), [self._inputs.to(device)])
            for ends in ((False, True) if self._records else ())
        }

    def enter(self, lane: int, speaker: Speaker, template: _Template | None) -> None:
        """A new stream in a lane."""
        memory = self._memory
        here = torch.zeros(len(memory.speaker), dtype=torch.bool)
        here[lane] = True
        memory.reset(here.to(memory.speaker.device))
        memory.speaker[lane] = speaker.embedding
        if template is not None:
            memory.flow.put(torch.tensor([lane], device=memory.speaker.device), template.state)
            memory.prompt_mel[lane, : len(template.prompt_mel)] = template.prompt_mel

    def run(self, chunks: Sequence[tuple[int, Chunk]]) -> list[Tensor]:
        """Audio `[samples]` of each lane that has a chunk, on the CPU."""
        lanes = [lane for lane, _ in chunks]
        self._inputs.zero_()
        for lane, chunk in chunks:
            row = self._inputs[lane]
            row[: len(chunk.tokens)] = torch.tensor(chunk.tokens)
            ahead = len(chunk.tokens) - chunk.length
            row[-_NUMBERS:] = torch.tensor((chunk.length, ahead, chunk.skipped, chunk.last))
        ends = any(chunk.last for _, chunk in chunks)
        if self._records:
            samples, counts = self._recorded[ends](self._inputs)
            samples, counts = samples[lanes], counts[lanes]
        elif len(lanes) == len(self._inputs):
            samples, counts = self._step(self._memory, ends, self._inputs)
            samples, counts = samples[lanes], counts[lanes]
        else:
            there = torch.tensor(lanes)
            part = self._memory.select(there)
            samples, counts = self._step(part, ends, self._inputs[there])
            self._memory.put(there, part)
        for lane, chunk in chunks:
            if chunk.skipped:
                self._memory.prompt_mel[lane] = 0
        rows = zip(samples.float().cpu(), counts.tolist(), strict=True)
        return [row[:count] for row, count in rows]

    def _step(self, memory: _Memory, ends: bool, inputs: Tensor) -> tuple[Tensor, Tensor]:
        tokens, numbers = inputs[:, :-_NUMBERS], inputs[:, -_NUMBERS:]
        lengths, skipped = numbers[:, _LENGTH], MEL_FRAMES_PER_TOKEN * numbers[:, _SKIPPED]
        mel = self._flow.step(
            tokens,
            lengths,
            numbers[:, _AHEAD],
            memory.speaker,
            memory.flow,
            prompt_mel=memory.prompt_mel,
        )
        # What was the prompt's goes behind the end, where nobody looks.
        rows = (self._frames + skipped[:, None]) % len(self._frames)
        heard = mel.gather(1, rows[:, :, None].expand_as(mel))
        frames = MEL_FRAMES_PER_TOKEN * lengths - skipped
        last = numbers[:, _LAST].bool() if ends else None
        return self._vocoder.step(heard, frames, last, memory.vocoder)


class Token2Wav:
    """Flow matching and vocoder with the memory of every slot.

    Args:
        modules: what speaks.
        slots: streams at once.
        lanes: slots that one call steps together; divides `slots`.
    """

    def __init__(self, modules: VoiceModules, slots: int, lanes: int) -> None:
        if slots % lanes:
            raise ValueError(f"lanes is {lanes}, which does not divide {slots} slots")
        self._modules = modules
        self._lanes = lanes
        self._groups = [_Lanes(modules, lanes) for _ in range(slots // lanes)]
        self._templates: list[tuple[Speaker, _Template | None]] = []

    def enter(self, slot: int, speaker: Speaker) -> None:
        """A new stream in a slot."""
        group, lane = divmod(slot, self._lanes)
        self._groups[group].enter(lane, speaker, self._template_of(speaker))

    def run(self, chunks: Sequence[Chunk]) -> list[Samples | Problem]:
        """Audio `[samples]` of each chunk, or why there is none."""
        made: dict[Chunk, Samples | Problem] = {}
        for number, group in enumerate(self._groups):
            own = [(c.slot % self._lanes, c) for c in chunks if c.slot // self._lanes == number]
            if own:
                made |= self._run_group(group, own)
        return [made[chunk] for chunk in chunks]

    def _run_group(
        self, group: _Lanes, chunks: Sequence[tuple[int, Chunk]]
    ) -> dict[Chunk, Samples | Problem]:
        try:
            made = group.run(chunks)
        except Exception as error:
            # States may have been changed: there is no second try.
            log.exception("token2wav failed")
            problem = Problem(f"token2wav failed: {type(error).__name__}")
            return {chunk: problem for _, chunk in chunks}
        pairs = zip(chunks, made, strict=True)
        return {chunk: _checked(samples) for (_, chunk), samples in pairs}

    def _template_of(self, speaker: Speaker) -> _Template | None:
        for known, template in self._templates:
            if known is speaker:
                return template
        template = self._read_prompt(speaker)
        self._templates.append((speaker, template))
        return template

    def _read_prompt(self, speaker: Speaker) -> _Template | None:
        """Runs a prompt through the flow, but for the tokens that it sees ahead at its end."""
        prompt, flow = speaker.prompt, self._modules.flow
        if prompt is None:
            return None
        chunk, look_ahead = flow.config.chunk_tokens, flow.config.look_ahead_tokens
        device, dtype = self._modules.device, next(flow.parameters()).dtype
        state = flow.initial_state(1, device=device, dtype=dtype)
        embedding = speaker.embedding.to(device, dtype)[None]
        mel = prompt.mel.to(device, dtype)
        first, length = 0, chunk - look_ahead
        while first + length + look_ahead <= len(prompt.speech_tokens):
            tokens = torch.zeros(1, chunk + look_ahead, dtype=torch.long, device=device)
            seen = prompt.speech_tokens[first : first + length + look_ahead]
            tokens[0, : len(seen)] = torch.tensor(seen, device=device)
            given = torch.zeros(1, MEL_FRAMES_PER_TOKEN * chunk, mel.shape[1]).to(mel)
            frames = mel[MEL_FRAMES_PER_TOKEN * first : MEL_FRAMES_PER_TOKEN * (first + length)]
            given[0, : len(frames)] = frames
            flow.step(
                tokens,
                torch.tensor([length], device=device),
                torch.tensor([look_ahead], device=device),
                embedding,
                state,
                prompt_mel=given,
            )
            first, length = first + length, chunk
        return _Template(state, mel[MEL_FRAMES_PER_TOKEN * first :])


def _checked(samples: Tensor) -> Samples | Problem:
    if not torch.isfinite(samples).all():
        return Problem("token2wav computes no finite samples; look at the speaker's embedding")
    audio: Samples = samples.clamp(-1, 1).numpy().copy()
    return audio
