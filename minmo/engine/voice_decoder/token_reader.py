"""Computes the voice token LM's steps: inputs of many utterances in, a speech token for each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from minmo.engine.decoding import BatchedDecoder
from minmo.engine.row_counts import RowCounts
from minmo.engine.speech_sampling import RepetitionAwareSampler, draw_rows
from minmo.engine.voice_decoder.modules import VoiceModules
from minmo.engine.voice_decoder.scheduler import Problem
from minmo.engine.voice_decoder.sequence import Reading, SpeechSequence
from minmo.model.interleave import Kind
from minmo.model.llm import LlmCache, Segment


class TokenReader:
    """The voice token LM, its cache, and who draws from it.

    Args:
        modules: what speaks.
        slots: utterances at once.
        context: positions of each.
        rows: positions that one step may read.
        batched: whether the attention of all that have drawn a token is computed at once, in
            recorded steps of fixed shapes; None where that is faster, on a GPU.
    """

    def __init__(
        self,
        modules: VoiceModules,
        slots: int,
        context: int,
        rows: int,
        batched: bool | None = None,
    ) -> None:
        lm, device = modules.lm, modules.device
        self._modules, self._lm = modules, lm
        dtype = self._dtype = lm.trunk.dtype
        self._cache = LlmCache(lm.cache_config, slots, context, dtype, device)
        self._samplers: dict[SpeechSequence, RepetitionAwareSampler] = {}
        self._rows = RowCounts(lm.trunk.linears(), rows, dtype, device)
        self._head_rows = RowCounts([(lm.logits, lm.config.width)], slots, dtype, device)
        self._semantic_rows: RowCounts | None = None
        if modules.semantic is not None:
            projector = modules.semantic.projector
            width = 2 * projector.config.input_width
            self._semantic_rows = RowCounts([(projector.linear, width)], rows, dtype, device)
        batched = device.type == "cuda" if batched is None else batched
        self._decoder = BatchedDecoder(lm.trunk, self._cache) if batched else None

    def forget(self, sequence: SpeechSequence) -> None:
        """An utterance has ended."""
        self._samplers.pop(sequence, None)

    def read(self, readings: Sequence[Reading]) -> list[int | Problem | None]:
        """Reads, and draws a token where one is asked for.

        Returns:
            For each reading its token, None if it asks for none, or why it failed.
        """
        finite = self._read_inputs(readings)
        results: list[int | Problem | None] = [
            None if is_finite else _not_finite(reading)
            for reading, is_finite in zip(readings, finite, strict=True)
        ]
        drawing = [n for n, reading in enumerate(readings) if reading.draws and finite[n]]
        if not drawing:
            return results
        asked = [readings[n] for n in drawing]
        ends = [reading.start + len(reading.inputs) - 1 for reading in asked]
        hidden = self._cache.hidden[[reading.slot for reading in asked], ends]
        missing = self._head_rows.at_least(len(asked)) - len(asked)
        logits = self._lm.logits(torch.nn.functional.pad(hidden, (0, 0, 0, missing)))
        samplers = [self._sampler_of(reading.sequence) for reading in asked]
        may_end = [reading.may_end for reading in asked]
        tokens = draw_rows(samplers, logits[: len(asked)], may_end)
        for n, token in zip(drawing, tokens, strict=True):
            results[n] = token
        return results

    def _sampler_of(self, sequence: SpeechSequence) -> RepetitionAwareSampler:
        if sequence not in self._samplers:
            self._samplers[sequence] = RepetitionAwareSampler(seed=sequence.seed)
        return self._samplers[sequence]

    def _read_inputs(self, readings: Sequence[Reading]) -> list[bool]:
        """Reads into the cache; for each reading, whether the LM computed finite numbers."""
        finite = [True] * len(readings)
        single = [n for n, r in enumerate(readings) if _is_single(r)] if self._decoder else []
        several = [n for n in range(len(readings)) if n not in set(single)]
        if self._decoder is not None and single:
            found = self._decoder.read(
                [readings[n].inputs[0].value for n in single],
                [readings[n].slot for n in single],
                [readings[n].start for n in single],
            )
            for n, is_finite in zip(single, found, strict=True):
                finite[n] = is_finite
        if several:
            chosen = [readings[n] for n in several]
            for n, is_finite in zip(several, self._read_segments(chosen), strict=True):
                finite[n] = is_finite
        return finite

    def _read_segments(self, readings: Sequence[Reading]) -> list[bool]:
        segments = [Segment(r.slot, r.start, len(r.inputs)) for r in readings]
        count = sum(segment.length for segment in segments)
        hidden = self._lm(self._embed(readings, self._rows.at_least(count)), segments, self._cache)
        rows = torch.isfinite(hidden).all(-1).tolist()
        ends = list(accumulate(segment.length for segment in segments))
        return [all(rows[end - s.length : end]) for s, end in zip(segments, ends, strict=True)]

    def _embed(self, readings: Sequence[Reading], rows: int) -> Tensor:
        """Inputs `[rows, width]`, zeros behind them."""
        lm, device = self._lm, self._modules.device
        items = [item for reading in readings for item in reading.inputs]
        speech = [item.value if item.kind is Kind.SPEECH else 0 for item in items]
        speech += [0] * (rows - len(items))
        embeddings = lm.embed_speech(torch.tensor(speech, device=device)).to(self._dtype)
        places: dict[Kind, list[int]] = {}
        for row, item in enumerate(items):
            places.setdefault(item.kind, []).append(row)
        embeddings[len(items) :] = 0
        if Kind.START in places:
            embeddings[places[Kind.START]] = lm.start
        if Kind.TURN_OF_SPEECH in places:
            embeddings[places[Kind.TURN_OF_SPEECH]] = lm.turn_of_speech
        if Kind.PREFIX in places:
            embeddings[places[Kind.PREFIX]] = self._query_vectors(readings)
        if Kind.SEMANTIC in places:
            embeddings[places[Kind.SEMANTIC]] = self._text_vectors(readings)
        return embeddings

    def _text_vectors(self, readings: Sequence[Reading]) -> Tensor:
        """Semantic vectors `[text tokens, width]` of what is read now."""
        ids = torch.tensor([id for r in readings for id in r.text], device=self._modules.device)
        semantic = self._modules.semantic
        if semantic is None:
            return self._lm.embed_text(ids).to(self._dtype)
        states = [
            torch.from_numpy(r.hidden_states) for r in readings if r.hidden_states is not None
        ]
        vectors = self._project(semantic.embeddings[ids], torch.cat(states))
        return vectors if semantic.spelled is None else vectors + semantic.spelled[ids]

    def _query_vectors(self, readings: Sequence[Reading]) -> Tensor:
        """Vectors `[positions, width]` of the queries' positions that are read now."""
        embeddings, states = [], []
        for reading in readings:
            rows = [item.value for item in reading.inputs if item.kind is Kind.PREFIX]
            if reading.sequence.query is not None and rows:
                embeddings.append(torch.from_numpy(reading.sequence.query.embeddings[rows]))
                states.append(torch.from_numpy(reading.sequence.query.hidden_states[rows]))
        return self._project(torch.cat(embeddings), torch.cat(states))

    def _project(self, embeddings: Tensor, hidden_states: Tensor) -> Tensor:
        assert self._modules.semantic is not None
        assert self._semantic_rows is not None
        count = len(embeddings)
        missing = self._semantic_rows.at_least(count) - count
        both = [
            torch.nn.functional.pad(rows.to(self._modules.device, self._dtype), (0, 0, 0, missing))
            for rows in (embeddings, hidden_states)
        ]
        vectors: Tensor = self._modules.semantic.projector(*both)
        return vectors[:count]


def _not_finite(reading: Reading) -> Problem:
    last = reading.start + len(reading.inputs) - 1
    return Problem(
        f"the voice token LM computes no finite numbers from positions {reading.start} to {last}; "
        "look at the size of the hidden states"
    )


def _is_single(reading: Reading) -> bool:
    return len(reading.inputs) == 1 and reading.inputs[0].kind is Kind.SPEECH
