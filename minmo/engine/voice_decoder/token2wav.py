"""Computes token2wav's steps: a chunk of speech tokens in, audio out, for streams in slots."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from minmo.engine.graphs import GraphedCall
from minmo.engine.row_counts import doublings
from minmo.engine.voice import Samples
from minmo.engine.voice_decoder.modules import VoiceModules
from minmo.engine.voice_decoder.scheduler import Problem
from minmo.engine.voice_decoder.sequence import Chunk
from minmo.model.flow_encoder import MEL_FRAMES_PER_TOKEN
from minmo.model.flow_matching import FlowMatching, FlowMatchingState
from minmo.model.speaker import Prompt, Speaker
from minmo.model.streaming import SlotState
from minmo.model.vocoder import VocoderState

log = logging.getLogger(__name__)

# Columns of a step's numbers behind the tokens.
_LANE, _LENGTH, _AHEAD, _SKIPPED, _LAST = range(5)
_NUMBERS = 5
# Speakers whose prompt stays read; each takes as much memory as a slot.
_TEMPLATES = 4
# Of the memory that is free, what slots may take: steps need some, too.
_USABLE = 0.9


class SlotMemoryError(ValueError):
    """A device's memory does not hold what so many slots remember; the text says how many fit."""


@dataclass(frozen=True)
class _Template:
    """A speaker's start: what token2wav remembers of the prompt, and the prompt's rest."""

    speaker: Speaker
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

    @classmethod
    def of(cls, modules: VoiceModules, slots: int, device: torch.device) -> _Memory:
        """Of streams that start."""
        flow, dtype = modules.flow.config, _dtype_of(modules.flow)
        frames = MEL_FRAMES_PER_TOKEN * flow.chunk_tokens
        return cls(
            torch.zeros(slots, flow.speaker_width, device=device, dtype=dtype),
            torch.zeros(slots, frames, flow.mel_bins, device=device, dtype=dtype),
            _flow_state(modules, slots, device),
            modules.vocoder.initial_state(slots, device=device, dtype=dtype),
        )


class _Lanes:
    """Slots that can be stepped together; a step costs as much as has a chunk in it.

    Args:
        modules: what speaks.
        width: slots.
        batched: whether the numbers of slots that step are few, each with a recorded step of its
            own; then memory and recordings are made at once, else when first needed.
    """

    def __init__(self, modules: VoiceModules, width: int, batched: bool) -> None:
        self._modules, self._width = modules, width
        flow, device = modules.flow.config, modules.device
        self._frames = torch.arange(MEL_FRAMES_PER_TOKEN * flow.chunk_tokens, device=device)
        self._columns = flow.chunk_tokens + flow.look_ahead_tokens + _NUMBERS
        self._memory: _Memory | None = None
        self._inputs: dict[int, Tensor] = {}
        self._calls: dict[tuple[int, bool], GraphedCall[tuple[Tensor, Tensor]]] = {}
        if batched:
            self._record()

    def _record(self) -> None:
        memory, device = self._remembered(), self._modules.device
        on_gpu = device.type == "cuda"
        pool = torch.cuda.graph_pool_handle() if on_gpu else None
        # The largest first: the others then fit into its memory.
        for rows in reversed(doublings(1, self._width)):
            inputs = torch.zeros(rows, self._columns, dtype=torch.long, pin_memory=on_gpu)
            inputs[:, _LANE - _NUMBERS] = torch.arange(rows)
            self._inputs[rows] = inputs
            # Where a stream ends, the vocoder has more to do.
            for ends in (True, False):
                step = partial(self._step_rows, memory, ends)
                self._calls[rows, ends] = GraphedCall(step, [inputs.to(device)], pool)

    def enter(self, lane: int, speaker: Speaker, template: _Template | None) -> None:
        """A new stream in a lane."""
        memory = self._remembered()
        memory.restart(lane)
        memory.speaker[lane] = speaker.embedding
        if template is not None:
            memory.flow.put(torch.tensor([lane], device=memory.speaker.device), template.state)
            memory.prompt_mel[lane, : len(template.prompt_mel)] = template.prompt_mel

    def run(self, chunks: Sequence[tuple[int, Chunk]]) -> list[Tensor]:
        """Audio `[samples]` of each lane that has a chunk, on the CPU."""
        memory = self._remembered()
        ends = any(chunk.last for _, chunk in chunks)
        if self._calls:
            rows = next(rows for rows in sorted(self._inputs) if rows >= len(chunks))
            inputs = self._inputs[rows]
            self._fill(inputs, chunks)
            samples, counts = self._calls[rows, ends](inputs)
        else:
            inputs = torch.empty(len(chunks), self._columns, dtype=torch.long)
            self._fill(inputs, chunks)
            step = self._step_rows if self._width > 1 else self._step
            samples, counts = step(memory, ends, inputs)
        for lane, chunk in chunks:
            if chunk.skipped:
                memory.prompt_mel[lane] = 0
        heard = zip(samples.float().cpu(), counts.tolist(), strict=True)
        return [row[:count] for _, (row, count) in zip(chunks, heard, strict=False)]

    def _remembered(self) -> _Memory:
        if self._memory is None:
            self._memory = _Memory.of(self._modules, self._width, self._modules.device)
        return self._memory

    def _fill(self, inputs: Tensor, chunks: Sequence[tuple[int, Chunk]]) -> None:
        """Writes what the chunks are into the first rows; the others are lanes that wait."""
        lanes = [lane for lane, _ in chunks]
        idle = (lane for lane in range(self._width) if lane not in lanes)
        inputs.zero_()
        for row, (lane, chunk) in zip(inputs, chunks, strict=False):
            row[: len(chunk.tokens)] = torch.tensor(chunk.tokens)
            ahead = len(chunk.tokens) - chunk.length
            numbers = (lane, chunk.length, ahead, chunk.skipped, chunk.last)
            row[-_NUMBERS:] = torch.tensor(numbers)
        for row, lane in zip(inputs[len(chunks) :], idle, strict=False):
            row[_LANE - _NUMBERS] = lane

    def _step_rows(self, memory: _Memory, ends: bool, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The step of the lanes that the inputs name; nothing is done for others."""
        lanes = inputs[:, _LANE - _NUMBERS]
        # The flow's is nearly all of the memory, and changes where it lies.
        part = _Memory(
            memory.speaker[lanes],
            memory.prompt_mel[lanes],
            memory.flow,
            memory.vocoder.select(lanes),
        )
        made = self._step(part, ends, inputs, lanes)
        memory.vocoder.put(lanes, part.vocoder)
        return made

    def _step(
        self, memory: _Memory, ends: bool, inputs: Tensor, lanes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        tokens, numbers = inputs[:, :-_NUMBERS], inputs[:, -_NUMBERS:]
        lengths, skipped = numbers[:, _LENGTH], MEL_FRAMES_PER_TOKEN * numbers[:, _SKIPPED]
        mel = self._modules.flow.step(
            tokens,
            lengths,
            numbers[:, _AHEAD],
            memory.speaker,
            memory.flow,
            prompt_mel=memory.prompt_mel,
            slots=lanes,
        )
        # What was the prompt's goes behind the end, where nobody looks.
        rows = (self._frames + skipped[:, None]) % len(self._frames)
        heard = mel.gather(1, rows[:, :, None].expand_as(mel))
        frames = MEL_FRAMES_PER_TOKEN * lengths - skipped
        last = numbers[:, _LAST].bool() if ends else None
        return self._modules.vocoder.step(heard, frames, last, memory.vocoder)


class Token2Wav:
    """Flow matching and vocoder with the memory of every slot.

    Args:
        modules: what speaks.
        slots: streams at once.
        lanes: slots that one call steps together; divides `slots`.
        batched: whether calls are recorded, for 1, 2, 4, ... slots that have a chunk; None where
            that is faster, on a GPU.

    Raises:
        ValueError: `lanes` does not divide `slots`.
        SlotMemoryError: the GPU has no memory for so many slots.
    """

    def __init__(
        self, modules: VoiceModules, slots: int, lanes: int, batched: bool | None = None
    ) -> None:
        if slots % lanes:
            raise ValueError(f"lanes is {lanes}, which does not divide {slots} slots")
        check_memory(modules, slots)
        self._modules = modules
        self._lanes = lanes
        batched = modules.device.type == "cuda" if batched is None else batched
        self._groups = [_Lanes(modules, lanes, batched) for _ in range(slots // lanes)]
        self._templates: OrderedDict[str, _Template] = OrderedDict()

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
        if speaker.prompt is None:
            return None
        template = self._templates.get(speaker.name)
        if template is None or template.speaker is not speaker:
            template = self._read_prompt(speaker, speaker.prompt)
            self._templates[speaker.name] = template
        self._templates.move_to_end(speaker.name)
        if len(self._templates) > _TEMPLATES:
            self._templates.popitem(last=False)
        return template

    def _read_prompt(self, speaker: Speaker, prompt: Prompt) -> _Template:
        """Runs a prompt through the flow, but for the tokens that it sees ahead at its end."""
        flow = self._modules.flow
        chunk, look_ahead = flow.config.chunk_tokens, flow.config.look_ahead_tokens
        device, dtype = self._modules.device, _dtype_of(flow)
        state = _flow_state(self._modules, 1, device)
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
        return _Template(speaker, state, mel[MEL_FRAMES_PER_TOKEN * first :])


def check_memory(modules: VoiceModules, slots: int) -> None:
    """Makes sure that a GPU holds what so many slots remember.

    Raises:
        SlotMemoryError: it does not.
    """
    free = free_memory(modules.device)
    if free is None:
        return
    size = _Memory.of(modules, 1, torch.device("meta")).size_bytes()
    if slots * size > _USABLE * free:
        raise SlotMemoryError(
            f"{slots} slots of the voice decoder need {slots * size / 1e9:.1f} GB, "
            f"{size / 1e6:.0f} MB each, and {free / 1e9:.1f} GB are free on {modules.device}: "
            f"{int(_USABLE * free // size)} slots fit"
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be had on a GPU; None for a device where that is not asked."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def _dtype_of(flow: FlowMatching) -> torch.dtype:
    return next(flow.parameters()).dtype


def _flow_state(modules: VoiceModules, slots: int, device: torch.device) -> FlowMatchingState:
    """Where memory is a GPU's, keys and values take half of it."""
    dtype = _dtype_of(modules.flow)
    ring_dtype = torch.bfloat16 if modules.device.type == "cuda" else dtype
    return modules.flow.initial_state(slots, device=device, dtype=dtype, ring_dtype=ring_dtype)


def _checked(samples: Tensor) -> Samples | Problem:
    if not torch.isfinite(samples).all():
        return Problem("token2wav computes no finite samples; look at the speaker's embedding")
    audio: Samples = samples.clamp(-1, 1).numpy().copy()
    return audio
