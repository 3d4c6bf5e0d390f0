"""Reading along: the recogniser's tokens while the audio still comes in.

Moonshine's decoder reads whole utterances. It attends to where a token is heard, and that says
which of its tokens can be trusted before the utterance has ended: those that it finds in sound that
has been over for a while (the policy AlignAtt, Papi et al., 2023). What it finds near the end of
what was heard, it is asked for again when more has come.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minmo.model.moonshine_recognizer import MoonshineRecognizer
from minmo.model.recognition import RecognizerCache, repetition

BEHIND_SECONDS = 1.0
"""Sound that must have come behind where a token is heard, before it is given."""

# The decoder was trained on utterances, not on speeches: of what is longer than this, what was
# said first is forgotten, at a pause between the latest and the earliest second before now.
_LONGEST_SECONDS = 20.0
_FORGET_BETWEEN_SECONDS = (12.0, 4.0)
# English speech has 3 to 5 tokens a second; more is a decoder that has lost the audio.
_TOKENS_PER_SECOND = 6.5
_EXTRA_TOKENS = 6
_CANDIDATES = 8


@dataclass(frozen=True)
class Token:
    """A token that was heard.

    Attributes:
        id: in the recogniser's vocabulary.
        frame: of the segment, at which it is heard.
        candidates: `[candidates]`, the likeliest tokens there, itself the first.
        weights: `[candidates]`, how likely each is; they sum to 1.
    """

    id: int
    frame: int
    candidates: Tensor
    weights: Tensor


class StreamingRecogniser:
    """The tokens of one segment, as its frames come in.

    Args:
        recogniser: of the frames' encoder.
        frame_seconds: from one frame to the next.
        begins_word: `[vocabulary]`, bool, on the CPU: the tokens that begin a word.
    """

    def __init__(
        self, recogniser: MoonshineRecognizer, frame_seconds: float, begins_word: Tensor
    ) -> None:
        config = recogniser.config
        self._recogniser, self._begins_word = recogniser, begins_word
        self._seconds = frame_seconds
        self._behind = round(BEHIND_SECONDS / frame_seconds)
        kind = next(recogniser.parameters())
        shape = (config.layers, 2, 1, config.heads, config.max_tokens, config.width // config.heads)
        said = torch.empty(shape, device=kind.device, dtype=kind.dtype)
        self._cache = RecognizerCache(said, [])
        # Frames of the segment: how many there were, and those of them that are forgotten.
        self.frames = 0
        """Frames heard so far."""
        self._forgotten = 0
        # Tokens whose sound is remembered.
        self._tokens: list[Token] = []
        self.word_is_over = True
        """Whether what comes next is not of the same word as the last token."""

    @property
    def settled(self) -> int:
        """Frames in which all tokens have been given."""
        last = self._tokens[-1].frame if self._tokens else self._forgotten
        return max(last, self.frames - self._behind)

    @torch.inference_mode()
    def wait(self, frames: Tensor) -> None:
        """Takes the next frames, in which nothing is said."""
        self._listen(frames)

    @torch.inference_mode()
    def hear(self, frames: Tensor) -> list[Token]:
        """Takes the next frames, `[1, frames, width]`; gives the tokens that can be trusted."""
        self._listen(frames)
        return self._read(self.frames - self._behind)

    @torch.inference_mode()
    def finish(self) -> list[Token]:
        """Gives the last tokens: the segment has ended."""
        tokens = self._read(None)
        self.word_is_over = True
        return tokens

    def _listen(self, frames: Tensor) -> None:
        self.frames += frames.shape[1]
        more = self._recogniser.hear(frames)
        known = self._cache.heard or [(keys[:, :, :0], values[:, :, :0]) for keys, values in more]
        self._cache.heard = [
            (torch.cat((keys, new[0]), dim=2), torch.cat((values, new[1]), dim=2))
            for (keys, values), new in zip(known, more, strict=True)
        ]
        if (self.frames - self._forgotten) * self._seconds > _LONGEST_SECONDS:
            self._forget()

    def _read(self, until: int | None) -> list[Token]:
        """Tokens that are heard before a frame of the segment; all of them for None."""
        config, found = self._recogniser.config, list[Token]()
        while self.frames > self._forgotten and len(self._tokens) < self._most:
            last = self._tokens[-1] if self._tokens else None
            self._cache.length = len(self._tokens)
            reading = self._recogniser.follow(
                config.start_token if last is None else last.id, self._cache
            )
            best = reading.logits.topk(_CANDIDATES)
            likeliest, candidates = int(best.indices[0]), best.indices.cpu()
            self.word_is_over = likeliest == config.end_token or bool(self._begins_word[likeliest])
            heard_at = self._forgotten + int(reading.attention.argmax())
            if likeliest == config.end_token or (until is not None and heard_at >= until):
                break
            if repetition([*(token.id for token in self._tokens), likeliest]):
                self.word_is_over = True
                break
            frame = heard_at if last is None else max(heard_at, last.frame)
            token = Token(likeliest, frame, candidates, best.values.softmax(-1).cpu())
            self._tokens.append(token)
            found.append(token)
        return found

    @property
    def _most(self) -> int:
        """Tokens that can be in what is remembered."""
        seconds = (self.frames - self._forgotten) * self._seconds
        most = int(seconds * _TOKENS_PER_SECOND) + _EXTRA_TOKENS
        return min(most, self._recogniser.config.max_tokens - 1)

    def _forget(self) -> None:
        """Forgets what was said first, up to the longest pause that is neither old nor recent."""
        early, late = (self.frames - int(s / self._seconds) for s in _FORGET_BETWEEN_SECONDS)
        tokens, cut, kept = self._tokens, early, len(self._tokens)
        longest = -1
        for number in range(1, len(tokens)):
            before, frame = tokens[number - 1].frame, tokens[number].frame
            begins = bool(self._begins_word[tokens[number].id])
            if begins and early <= frame <= late and frame - before > longest:
                longest, cut, kept = frame - before, (before + frame + 1) // 2, number
        rest = tokens[kept:]
        cache = self._cache
        gone = cut - self._forgotten
        cache.heard = [(keys[:, :, gone:], values[:, :, gone:]) for keys, values in cache.heard]
        self._forgotten, self._tokens = cut, rest
        if rest:
            # What was read before stood behind what is forgotten: it is read again.
            read = [self._recogniser.config.start_token, *(token.id for token in rest[:-1])]
            cache.length = 0
            self._recogniser(torch.tensor([read], device=cache.said.device), cache)
