"""The pretrained recogniser as a teacher: what it makes of the frames is to be what was said.

Moonshine's decoder knows how words are written and reads the frames of its own encoder, which hears
whole clips. Frozen, it teaches the encoder to give it the same from a stream: a cross entropy on
its tokens takes minutes where learning to recognise anew takes days.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from minmo.model.moonshine_recognizer import MoonshineRecognizer
from minmo.model.streaming import is_there
from minmo.model.token_loss import IGNORED
from minmo.training.words import Spans, spoken_words

# English speech has 3 to 5 tokens a second; more is a recogniser that has lost the audio.
_TOKENS_PER_SECOND = 6.5
_EXTRA_TOKENS = 6


class RecogniserLoss(nn.Module):
    """The loss of a batch of clips.

    A recogniser that reads while it hears has not heard what comes later. Half of the clips whose
    words have spans are read like that: a word's tokens attend to the frames up to some time
    behind its end, and no further.

    Args:
        recogniser: frozen.
        tokenizer: of its tokens.
        seconds: that one frame stands for.
        behind: seconds behind a word's end that are heard, drawn evenly between these two.
    """

    def __init__(
        self,
        recogniser: MoonshineRecognizer,
        tokenizer: Tokenizer,
        seconds: float,
        behind: tuple[float, float],
    ) -> None:
        super().__init__()
        self.recogniser = recogniser.requires_grad_(False).eval()
        self._tokenizer, self._seconds, self._behind = tokenizer, seconds, behind

    def forward(
        self,
        frames: Tensor,
        lengths: Tensor,
        texts: Sequence[str],
        words: Sequence[Spans | None] = (),
    ) -> Tensor:
        """The cross entropy, in nats a token.

        Args:
            frames: `[batch, frames, width]`.
            lengths: `[batch]`, how many of them are there.
            texts: what is said.
            words: where the `spoken_words` of each text are heard, or None; none at all for clips
                that are all read as a whole.
        """
        config = self.recogniser.config
        start, end = torch.tensor([config.start_token]), torch.tensor([config.end_token])
        read, wanted, until = [], [], []
        for number, text in enumerate(texts):
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            tokens = torch.tensor(encoding.ids[: config.max_tokens - 1], dtype=torch.int64)
            read.append(torch.cat((start, tokens)))
            wanted.append(torch.cat((tokens, end)))
            seen = torch.full((len(tokens) + 1,), frames.shape[1])
            spans = words[number] if words else None
            if spans is not None and float(torch.rand(())) < 0.5:
                known = token_ends(text, encoding.offsets[: len(tokens)], spans)
                if known is not None:
                    low, high = self._behind
                    behind = low + (high - low) * float(torch.rand(()))
                    seen[:-1] = ((torch.tensor(known) + behind) / self._seconds).long() + 1
            until.append(seen)
        device = frames.device
        limits = pad_sequence(until, batch_first=True).to(device)
        limits = torch.minimum(limits, lengths[:, None]).clamp(min=1)
        logits = self.recogniser.read(
            pad_sequence(read, batch_first=True, padding_value=config.end_token).to(device),
            frames,
            is_there(limits.flatten(), frames.shape[1]).view(*limits.shape, -1),
        )
        targets = pad_sequence(wanted, batch_first=True, padding_value=IGNORED).to(device)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    def recognise(self, frames: Tensor, lengths: Tensor) -> list[str]:
        """What the recogniser reads in clips, each as a whole."""
        texts = []
        for clip, count in zip(frames, lengths.tolist(), strict=True):
            most = int(count * self._seconds * _TOKENS_PER_SECOND) + _EXTRA_TOKENS
            tokens = self.recogniser.greedy(clip[None, : max(1, count)], most)
            texts.append(str(self._tokenizer.decode(tokens)))
        return texts


def token_ends(text: str, offsets: Sequence[tuple[int, int]], spans: Spans) -> list[float] | None:
    """When the word of each token is over, in seconds.

    Args:
        text: what is said.
        offsets: of its tokens, in characters.
        spans: of its `spoken_words`.

    Returns:
        None where the spans are of other words.
    """
    spoken = spoken_words(text)
    if len(spoken) != len(spans):
        return None
    # The last character of each spoken word; marks that stand alone belong to the word before.
    places, at = [], 0
    for word in spoken:
        at = text.index(word, at) + len(word)
        places.append(at)
    ends, current = [], 0
    for _, last in offsets:
        while current + 1 < len(places) and any(map(str.isalnum, text[places[current] : last])):
            current += 1
        ends.append(spans[current][1])
    return ends
