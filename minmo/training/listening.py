"""What speech-to-text training trains, and the losses that it minimises (paper, section 3.4).

Before the LLM takes part, two recognition losses teach what is heard: letters, at the encoder's
rate, and pieces of the LLM's vocabulary, at the projector's. Through the frozen LLM a third one
teaches what it needs to hear to answer as it answers text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from minmo.engine.ears import Ears, Reading
from minmo.model.block_streaming import SAMPLE_RATE_HZ, BlockStreamingEncoder
from minmo.model.input_projector import InputProjector
from minmo.model.llm import Llm
from minmo.model.merging import merge
from minmo.model.recognition_head import RecognitionHead, recognition_loss
from minmo.model.spelling import letters_of
from minmo.model.token_loss import IGNORED
from minmo.training.config import TrainingConfig
from minmo.training.errors import TrainingError
from minmo.training.words import Spans, spoken_words

# A word may be recognised a little before it begins, as sounds run into each other, and until
# some time after its end: seconds.
_EARLY, _LETTERS_LATE, _PIECES_LATE = 0.03, 0.2, 0.3


class Heard(NamedTuple):
    """What the modules make of a batch of clips.

    Attributes:
        frames: `[batch, frames, encoder width]`.
        frame_lengths: `[batch]`.
        letters: `[batch, frames, letters + 1]`, log probabilities.
        embeddings: `[batch, embeddings, width]`.
        lengths: `[batch]`, embeddings of each clip.
    """

    frames: Tensor
    frame_lengths: Tensor
    letters: Tensor
    embeddings: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Targets:
    """What is said in a batch of clips.

    Attributes:
        letters: `[batch, letters]`, classes of `minmo.model.spelling`.
        letter_lengths: `[batch]`.
        pieces: `[batch, pieces]`, classes of the recognition head.
        piece_lengths: `[batch]`.
    """

    letters: Tensor
    letter_lengths: Tensor
    pieces: Tensor
    piece_lengths: Tensor

    def to(self, device: torch.device) -> Targets:
        """The same on a device."""
        return Targets(*(getattr(self, one.name).to(device) for one in fields(self)))


@dataclass(frozen=True)
class Cuts:
    """Words cut out of a batch of clips, with what is said in each.

    Attributes:
        clips: `[words]`, which clip each is of.
        starts: `[words]`, its first frame.
        lengths: `[words]`, its frames.
        targets: `[words, labels]`, classes.
        target_lengths: `[words]`.
    """

    clips: Tensor
    starts: Tensor
    lengths: Tensor
    targets: Tensor
    target_lengths: Tensor

    def to(self, device: torch.device) -> Cuts:
        """The same on a device."""
        return Cuts(*(getattr(self, one.name).to(device) for one in fields(self)))


def check_heard(config: TrainingConfig) -> None:
    """Refuses clips that are not heard, or at another rate than the voice encoder's.

    Raises:
        TrainingError: says which setting is wrong.
    """
    if not config.data.audio or config.data.sample_rate != SAMPLE_RATE_HZ:
        raise TrainingError(
            f"{config.stage} hears its clips at {SAMPLE_RATE_HZ} Hz, whatever they were recorded "
            f"at: set data.audio=true and data.sample_rate={SAMPLE_RATE_HZ}"
        )


class PieceTokenizer:
    """Text to classes of the recognition head, and back.

    Pieces that the head lacks are spelled with shorter ones that it has.

    Args:
        tokenizer: the LLM's.
        pieces: `[count]`, token ids that the head knows.
    """

    def __init__(self, tokenizer: Tokenizer, pieces: Tensor) -> None:
        self._tokenizer = tokenizer
        self._pieces = pieces.tolist()
        self._classes = {token: number for number, token in enumerate(self._pieces)}
        texts = (tokenizer.decode([token]) for token in self._pieces)
        self._spelled = {text: number for number, text in enumerate(texts)}

    def classes(self, text: str) -> list[int]:
        """Classes of the pieces of a text."""
        classes: list[int] = []
        for token in self._tokenizer.encode(text, add_special_tokens=False).ids:
            known = self._classes.get(token)
            classes += [known] if known is not None else self._spell(token)
        return classes

    def text(self, classes: Sequence[int]) -> str:
        """The text of classes."""
        return str(self._tokenizer.decode([self._pieces[number] for number in classes]))

    def _spell(self, token: int) -> list[int]:
        rest, classes = str(self._tokenizer.decode([token])), []
        while rest:
            size = next((n for n in range(len(rest), 0, -1) if rest[:n] in self._spelled), 0)
            if size:
                classes.append(self._spelled[rest[:size]])
            rest = rest[max(size, 1) :]
        return classes


def targets_of(texts: Sequence[str], pieces: PieceTokenizer) -> Targets:
    """The targets of a batch of texts."""
    letters, letter_lengths = _padded([letters_of(text) for text in texts])
    classes, piece_lengths = _padded([pieces.classes(text) for text in texts])
    return Targets(letters, letter_lengths, classes, piece_lengths)


def letter_cuts(texts: Sequence[str], words: Sequence[Spans | None], seconds: float) -> Cuts:
    """Words cut out at the letters' rate, of clips whose words have spans.

    Args:
        texts: of the clips.
        words: spans of each clip's `spoken_words`, or None.
        seconds: that one frame stands for.
    """
    return _cuts(texts, words, seconds, _LETTERS_LATE, lambda word, _: letters_of(word))


def piece_cuts(
    texts: Sequence[str], words: Sequence[Spans | None], seconds: float, pieces: PieceTokenizer
) -> Cuts:
    """The same at the pieces' rate."""

    def classes(word: str, number: int) -> list[int]:
        return pieces.classes(f" {word}" if number else word)

    return _cuts(texts, words, seconds, _PIECES_LATE, classes)


def _cuts(
    texts: Sequence[str],
    words: Sequence[Spans | None],
    seconds: float,
    late: float,
    labels: Callable[[str, int], list[int]],
) -> Cuts:
    clips: list[int] = []
    starts: list[int] = []
    lengths: list[int] = []
    rows: list[list[int]] = []
    for clip, (text, spans) in enumerate(zip(texts, words, strict=True)):
        spoken = spoken_words(text)
        # Spans of other words than ours say nothing.
        known = spans if spans is not None and len(spans) == len(spoken) else ()
        for number, (word, span) in enumerate(zip(spoken, known, strict=bool(known))):
            first = max(0, int((span[0] - _EARLY) / seconds))
            clips.append(clip)
            starts.append(first)
            lengths.append(int((span[1] + late) / seconds) + 1 - first)
            rows.append(labels(word, number))
    targets, target_lengths = _padded(rows)
    return Cuts(
        torch.tensor(clips, dtype=torch.int64),
        torch.tensor(starts, dtype=torch.int64),
        torch.tensor(lengths, dtype=torch.int64),
        targets,
        target_lengths,
    )


def cut_loss(log_probabilities: Tensor, lengths: Tensor, cuts: Cuts) -> Tensor:
    """The recognition loss of each word by itself, per label.

    Args:
        log_probabilities: `[batch, frames, classes + 1]`, the last class is the blank.
        lengths: `[batch]`, frames of each clip; a word ends with its clip.
        cuts: of the same clips.
    """
    there = (lengths[cuts.clips] - cuts.starts).clamp(min=0)
    counts = torch.minimum(cuts.lengths, there)
    if not len(counts):
        return log_probabilities.new_zeros(())
    columns = cuts.starts[:, None] + torch.arange(int(counts.max()), device=counts.device)
    columns = columns.clamp(max=log_probabilities.shape[1] - 1)
    words = log_probabilities[cuts.clips[:, None], columns]
    return recognition_loss(words, counts, cuts.targets, cuts.target_lengths)


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    longest = max((len(row) for row in rows), default=0)
    padded = torch.zeros(len(rows), max(1, longest), dtype=torch.int64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = torch.tensor(row, dtype=torch.int64)
    return padded, lengths


class ListeningModel(nn.Module):
    """The voice encoder under its streaming mask, the input projector and the recognition head.

    Args:
        encoder: the voice encoder.
        projector: with letters.
        head: of the LLM's vocabulary.
    """

    def __init__(
        self, encoder: BlockStreamingEncoder, projector: InputProjector, head: RecognitionHead
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.head = encoder, projector, head

    def forward(self, samples: Tensor, lengths: Tensor) -> Heard:
        """Listens to clips.

        Args:
            samples: `[batch, samples]` at 16 kHz, zeros behind each clip: a stream hears silence
                there too.
            lengths: `[batch]`, samples of each clip.
        """
        return self.hear(*self.frames(samples, lengths))

    def frames(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The voice encoder's frames of clips, `[batch, frames, width]`, and how many of each."""
        frames = self.encoder.forward_causal(samples)
        counts = lengths.div(self.encoder.samples_per_frame, rounding_mode="floor")
        return frames, counts.clamp(max=frames.shape[1])

    def hear(self, frames: Tensor, frame_lengths: Tensor) -> Heard:
        """What comes behind the voice encoder.

        Args:
            frames: `[batch, frames, encoder width]`.
            frame_lengths: `[batch]`, how many of them are there.
        """
        embeddings, scores = self.projector.listen(frames)
        if scores is None:
            raise ValueError("the input projector has no letters: its preset says letters = 0")
        letters = scores.float().log_softmax(-1)
        stride = self.projector.config.stride
        counts = frame_lengths.div(stride, rounding_mode="floor").clamp(max=embeddings.shape[1])
        return Heard(frames, frame_lengths, letters, embeddings, counts)

    @property
    def letter_seconds(self) -> float:
        """That one frame of letters stands for."""
        return float(self.encoder.samples_per_frame / SAMPLE_RATE_HZ)

    @property
    def piece_seconds(self) -> float:
        """That one speech embedding stands for."""
        return self.letter_seconds * self.projector.config.stride

    def pieces(self, heard: Heard, sampled: Sampled | None = None) -> Tensor:
        """Log probabilities of pieces, `[batch, embeddings, n + 1]`; all of them if None."""
        if sampled is None:
            return cast(Tensor, self.head(heard.embeddings))
        return cast(Tensor, self.head(heard.embeddings, sampled.classes, sampled.offsets))

    def merged(self, heard: Heard) -> ReadRows:
        """What the LLM reads of clips whose pieces are merged."""
        found = self.head(heard.embeddings)
        merged = merge(self.head.mixtures(heard.embeddings, found), found, heard.lengths)
        return ReadRows(merged.embeddings, merged.counts)

    def read(self, heard: Heard, reading: Reading) -> ReadRows:
        """What the LLM reads of clips whose words a recogniser reads.

        Gradients pass to how they sound, not to what was read.
        """
        frames, ears = heard.frames.detach(), Ears(self.encoder, self.projector, self.head, reading)
        rows = []
        for clip, count in enumerate(heard.frame_lengths.tolist()):
            finder, embeddings = ears.finder(), heard.embeddings[clip : clip + 1]
            found = finder.find(frames[clip : clip + 1, :count], embeddings, silent=False)
            rows.append(found.followed_by(finder.finish()).embeddings)
        counts = torch.tensor([len(each) for each in rows], device=frames.device)
        return ReadRows(pad_sequence(rows, batch_first=True).to(heard.embeddings), counts)


class ReadRows(NamedTuple):
    """What the LLM reads of a batch of clips.

    Attributes:
        embeddings: `[batch, pieces, width]`, zeros behind the counts.
        counts: `[batch]`, pieces of each clip.
    """

    embeddings: Tensor
    counts: Tensor


class Sampled(NamedTuple):
    """The pieces that a batch's own are told from.

    Attributes:
        classes: `[n]`, sorted.
        offsets: `[n]`, to be added to their scores: a piece that is drawn stands for all those as
            frequent that were not, so that a sample has the normaliser of the whole vocabulary
            (Jean et al., 2015). Without it what is rarely drawn is heard too often.
    """

    classes: Tensor
    offsets: Tensor


def sampled_classes(
    wanted: Tensor, weights: Tensor, count: int, generator: torch.Generator
) -> Sampled:
    """The pieces that are said and a sample of others to tell them from.

    Args:
        wanted: classes that are said in a batch, in any shape.
        weights: `[pieces]`, how often each is drawn.
        count: of the sample.
        generator: that draws it.
    """
    said: Tensor = torch.unique(wanted)
    if count >= len(weights):
        return Sampled(torch.arange(len(weights)), torch.zeros(len(weights)))
    # Those with the earliest times of independent Poisson processes are drawn; the last one's time
    # says how likely each was to be among them.
    times = torch.empty_like(weights).exponential_(generator=generator) / weights
    last = times.kthvalue(count).values
    drawn = times <= last
    drawn[said] = True
    classes = drawn.nonzero()[:, 0]
    offsets = -torch.log(-torch.expm1(-last * weights[classes]))
    # What is said is always among them.
    offsets[torch.searchsorted(classes, said)] = 0
    return Sampled(classes, offsets)


@dataclass(frozen=True)
class SpokenTurn:
    """A turn that the LLM hears, and what it should say.

    Attributes:
        before: tokens in front of what is heard: the system's turn, the user's role, a task.
        after: tokens behind it: the end of the user's turn, the assistant's role.
        answer: tokens that it should say, with the end of its turn.
    """

    before: Sequence[int]
    after: Sequence[int]
    answer: Sequence[int]


class HeardTurns(NamedTuple):
    """What the LLM reads of a batch of turns, and what it should predict; for `text_loss`.

    Attributes:
        embeddings: `[batch, positions, width]`, zeros behind each turn.
        targets: `[batch, positions]`, `IGNORED` outside the answers.
        lengths: `[batch]`, positions of each turn.
    """

    embeddings: Tensor
    targets: Tensor
    lengths: Tensor


def heard_turns(llm: Llm, rows: ReadRows, turns: Sequence[SpokenTurn]) -> HeardTurns:
    """Lays out what was heard between the tokens of its turns.

    Args:
        llm: whose embeddings the tokens have.
        rows: what was heard, one clip for each turn.
        turns: of the same batch.
    """
    embeddings, targets = [], []
    for number, turn in enumerate(turns):
        heard = rows.embeddings[number, : int(rows.counts[number])]
        # The last token of an answer is predicted and never read.
        read = (torch.tensor(turn.before), torch.tensor([*turn.after, *turn.answer[:-1]]))
        before, after = (llm.embed(part.to(heard.device)).to(heard.dtype) for part in read)
        embeddings.append(torch.cat((before, heard, after)))
        target = torch.full((len(embeddings[-1]),), IGNORED, device=heard.device)
        target[len(target) - len(turn.answer) :] = torch.tensor(turn.answer)
        targets.append(target)
    lengths = torch.tensor([len(part) for part in embeddings], device=rows.counts.device)
    return HeardTurns(
        pad_sequence(embeddings, batch_first=True),
        pad_sequence(targets, batch_first=True, padding_value=IGNORED),
        lengths,
    )
