"""Which clips can be what in a scene: whole turns, answers, back-channels, fillers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minmo.training.data.duplex_asides import AsideKind, aside_kind
from minmo.training.data.errors import DataError
from minmo.training.data.levels import speech_range
from minmo.training.errors import TrainingError
from minmo.training.shar import SAMPLE_RATE, Clip, read_audio, read_shard, shard_folders
from minmo.training.words import Spans, spoken_words

_ENDS = (".", "?", "!")
# A pause is cut between two words of which each has so many words before or behind it.
_WORDS_AROUND = 2
_LONGEST_SECONDS = 12.0


@dataclass(frozen=True)
class Voiced:
    """A clip that can be heard in a scene.

    Attributes:
        clip: itself.
        shard: folder of its shard.
        spans: of its words; none where nobody knows them.
    """

    clip: Clip
    shard: Path
    spans: Spans

    def speech(self) -> tuple[float, float]:
        """Start of the first word and end of the last one, in seconds of the clip."""
        if self.spans:
            return self.spans[0][0], self.spans[-1][1]
        first, end = speech_range(read_audio(self.clip), SAMPLE_RATE)
        return first / SAMPLE_RATE, end / SAMPLE_RATE

    def borders(self) -> list[int]:
        """Words behind which the sentence is not complete, by their numbers."""
        words = spoken_words(self.clip.text)
        return [
            number
            for number in range(_WORDS_AROUND - 1, len(self.spans) - _WORDS_AROUND)
            if not words[number].endswith((*_ENDS, ";", ":"))
        ]


@dataclass
class Cast:
    """Who can say what in the scenes of a set.

    Attributes:
        turns: whole utterances of each speaker.
        asides: of each kind, by speaker.
    """

    turns: dict[str, list[Voiced]] = field(default_factory=dict)
    asides: dict[AsideKind, dict[str, list[Voiced]]] = field(default_factory=dict)

    @property
    def speakers(self) -> list[str]:
        """Those with whole utterances, in a fixed order."""
        return sorted(self.turns)

    def answers(self) -> dict[str, list[Voiced]]:
        """What an assistant may say, by speaker: utterances that ask nothing."""
        found = {
            speaker: [one for one in clips if not one.clip.text.endswith("?")]
            for speaker, clips in self.turns.items()
        }
        return {speaker: clips for speaker, clips in found.items() if clips}

    def with_pauses(self) -> dict[str, list[Voiced]]:
        """The utterances that can be cut within a sentence, by speaker."""
        found = {
            speaker: [one for one in clips if one.borders()]
            for speaker, clips in self.turns.items()
        }
        return {speaker: clips for speaker, clips in found.items() if clips}


def read_cast(folders: Sequence[Path], split: str) -> Cast:
    """The clips of a set.

    Args:
        folders: of shards of spoken clips.
        split: the set.

    Raises:
        DataError: a folder is missing, or a shard of it is damaged.
    """
    try:
        return cast_of(
            (shard, clip)
            for folder in folders
            for shard in shard_folders(folder, split)
            for clip in read_shard(shard)
        )
    except TrainingError as error:
        raise DataError(str(error)) from error


def cast_of(clips: Iterable[tuple[Path, Clip]]) -> Cast:
    """Sorts clips, each with the folder of its shard, by what they can be."""
    turns: dict[str, list[Voiced]] = defaultdict(list)
    asides: dict[AsideKind, dict[str, list[Voiced]]] = defaultdict(lambda: defaultdict(list))
    for shard, clip in clips:
        spans = _spans(clip)
        voiced = Voiced(clip, shard, spans)
        kind = aside_kind(str(clip.custom.get("source", "")))
        if kind is not None:
            asides[kind][clip.speaker].append(voiced)
        elif _is_whole(clip):
            turns[clip.speaker].append(voiced)
    return Cast(dict(turns), {kind: dict(of) for kind, of in asides.items()})


def _is_whole(clip: Clip) -> bool:
    """Whether a clip is a whole utterance, and not a part of a long sentence."""
    text = clip.text
    instructed = "instruct" in clip.custom
    return (
        bool(text)
        and not instructed
        and bool(clip.speaker)
        and (text[0].isupper() or text[0].isdigit())
        and text.endswith(_ENDS)
        and clip.seconds <= _LONGEST_SECONDS
    )


def _spans(clip: Clip) -> Spans:
    spans = clip.custom.get("words") or ()
    return tuple((float(start), float(end)) for start, end in spans)
