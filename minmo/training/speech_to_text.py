"""The stage speech-to-text: the LLM learns to listen (paper, section 3.4).

Its recipes are one stage with other modules moved and other losses weighed: adapt moves the voice
encoder for the recogniser that reads along, pre-align what is new, full-align both where nothing
reads along, SFT learns through the frozen LLM.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.engine.ears import Reading
from minmo.loading import load_reading
from minmo.model.block_streaming import SAMPLE_RATE_HZ, BlockStreamingEncoder
from minmo.model.input_projector import InputProjector
from minmo.model.llm import Llm
from minmo.model.moonshine_recognizer import MoonshineRecognizer, MoonshineRecognizerConfig
from minmo.model.recognition_head import (
    RecognitionHead,
    RecognitionHeadConfig,
    recognition_loss,
)
from minmo.model.spelling import LETTERS, spellings_of
from minmo.model.streaming import is_there
from minmo.presets import Preset, build_module, load_preset, modules_of
from minmo.training.batches import Batch, Source
from minmo.training.config import Range, TrainingConfig
from minmo.training.data.errors import DataError
from minmo.training.data.jsonl import read_lines
from minmo.training.errors import TrainingError
from minmo.training.filling import fill
from minmo.training.joining import joined
from minmo.training.listening import (
    Heard,
    ListeningModel,
    PieceTokenizer,
    ReadRows,
    Sampled,
    check_heard,
    cut_loss,
    letter_cuts,
    piece_cuts,
    sampled_classes,
    targets_of,
)
from minmo.training.own_answers import OwnAnswers
from minmo.training.recogniser_loss import RecogniserLoss
from minmo.training.remembering import RememberedFrames, check_remembering
from minmo.training.stage import Stage, StateDict, Trainee, Weights
from minmo.training.tables import build
from minmo.training.transcripts import error_rate, letters_text, plain_words
from minmo.weights.aligned import write_aligned
from minmo.weights.load import load_state_dict, weights_folder
from minmo.weights.modules import load_module
from minmo.weights.naming import select

MODULES = ("voice_encoder", "input_projector", "recognition_head")
_TABLE = "model.embed_tokens.weight"
_LOSSES = ("letters", "pieces", "words", "distillation", "answers", "recogniser")
# Texts whose tokens are counted at once.
_COUNTED = 4096


@dataclass(frozen=True)
class SpeechToTextOptions:
    """What the stage minimises.

    Attributes:
        letters: weight of the letters' recognition loss.
        pieces: weight of the pieces' recognition loss.
        words: weight of both recognition losses word by word, of clips that say where their words
            are; quicker to learn, and less exact about where one word ends and the next begins.
        distillation: weight of how far frames are from those of the pretrained encoder, which
            hears the whole clip, and without noise.
        answers: weight of how far the LLM, hearing, is from its own answers to the text.
        sampled_pieces: pieces that a batch's own are told from, drawn anew for each.
        minimum_count: how often the training text has a piece that is to be recognised; single
            letters always are.
        texts: file of JSON lines with `text`, as of `minmo data texts`, in which pieces are
            counted, in place of the clips; a head to begin with gets those of its pieces that it
            lacks. Empty for the clips.
        reading: whether the pretrained recogniser reads along and finds the pieces, in place of the
            recognition head; the exported set says so. For Moonshine's.
        recogniser: weight of how far the pretrained recogniser, which reads the frames, is from the
            text.
        recogniser_behind: seconds behind a word's end that it hears of the clips that it reads as
            they come, drawn from this range.
        blocks: sizes of a block of the stream, in frames, one of which is drawn for each batch; the
            preset's if empty. What a frame sees before its block stays as long.
        joined_seconds: neighbours of a batch are said one after the other up to so long; 0 for each
            by itself. Most synthetic clips are shorter than what a frame of the stream sees.
        remember_mb: megabytes of the frozen voice encoder's frames to keep, 87 for an hour of
            `mini`'s; each clip stays as it was first heard, so silence and speed must not be drawn
            anew. 0 to encode each time.
        answer_tokens: of the LLM's own answers, at most.
        system_prompt: who the LLM is told it is; empty for nothing.
        llm_precision: of the frozen LLM's computation.
    """

    letters: float = 1.0
    pieces: float = 1.0
    words: float = 0.0
    distillation: float = 0.0
    answers: float = 0.0
    sampled_pieces: int = 2500
    minimum_count: int = 4
    texts: str = ""
    reading: bool = False
    recogniser: float = 0.0
    recogniser_behind: Range = (0.1, 0.6)
    blocks: tuple[int, ...] = ()
    joined_seconds: float = 0.0
    remember_mb: float = 0.0
    answer_tokens: int = 24
    system_prompt: str = ""
    llm_precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        weights = [getattr(self, name) for name in _LOSSES]
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(
                f"{', '.join(_LOSSES[:-1])} and {_LOSSES[-1]} are weights of losses, from 0 on, "
                "and one at least is more"
            )
        low, high = self.recogniser_behind
        if not 0 <= low <= high:
            raise ValueError(
                f"recogniser_behind is [{low:g}, {high:g}]; it is two numbers of seconds from 0 "
                "on, the lower one first"
            )
        if any(frames < 1 for frames in self.blocks):
            raise ValueError(f"blocks are {list(self.blocks)}: a block has at least one frame")
        if self.remember_mb < 0 or self.joined_seconds < 0:
            raise ValueError("remember_mb and joined_seconds are 0 or more")
        if self.remember_mb and self.joined_seconds:
            raise ValueError("joined_seconds joins other clips each time: set remember_mb=0")
        if self.sampled_pieces < 1 or self.minimum_count < 1 or self.answer_tokens < 1:
            raise ValueError("sampled_pieces, minimum_count and answer_tokens are at least 1")


class SpeechToText(Stage):
    """The stage; see the module."""

    name = "speech-to-text"

    def check(self, config: TrainingConfig) -> None:
        """Refuses what it does not know; see `Stage.check`."""
        check_heard(config)
        if _options(config).remember_mb:
            check_remembering(config)
        for module in config.optimizer.learning_rates:
            if module not in MODULES:
                raise TrainingError(
                    f"optimizer.learning_rates names {module!r}; speech-to-text trains: "
                    f"{', '.join(MODULES)}"
                )
        preset = load_preset(config.preset)
        options = _options(config)
        if (options.reading or options.recogniser) and not isinstance(
            preset.recognizer, MoonshineRecognizerConfig
        ):
            raise TrainingError(
                f"preset {preset.name!r} has no decoder of Moonshine's to read along: set "
                "options.reading=false and options.recogniser=0"
            )
        missing = [name for name in (*MODULES, "llm") if name not in modules_of(preset)]
        if missing or not preset.input_projector.letters:
            what = f"no {' and no '.join(missing)}" if missing else "input_projector.letters = 0"
            raise TrainingError(
                f"preset {preset.name!r} has {what}: speech-to-text needs a voice encoder, an "
                f"input projector with letters = {len(LETTERS)}, a recognition head and an LLM"
            )

    def build(
        self, config: TrainingConfig, weights: Weights, sources: Sequence[Source]
    ) -> SpeechToTextTrainee:
        """Builds the modules; see `Stage.build`."""
        options, preset = _options(config), load_preset(config.preset)
        folder = weights_folder(config.preset, "llm")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        counts = _counts(tokenizer, _texts(options, sources))
        modules = _modules(config.preset, preset, weights, tokenizer, counts, options)
        pieces = cast(RecognitionHead, modules["recognition_head"]).pieces
        frequencies = torch.tensor([float(counts[token]) for token in pieces.tolist()])
        teacher = None
        if options.distillation:
            teacher = load_module(config.preset, "voice_encoder").requires_grad_(False)
        answers = None
        if options.answers:
            dtype = getattr(torch, options.llm_precision)
            # Weights that are packed for inference have no gradient.
            llm = Llm.from_state_dict(preset.llm, load_state_dict(folder), dtype)
            answers = OwnAnswers(llm, folder, options.answer_tokens, options.system_prompt)
        recogniser = None
        if options.recogniser:
            recogniser = _recogniser_loss(
                config.preset, cast(BlockStreamingEncoder, modules["voice_encoder"]), options
            )
        reading = None
        if options.reading and options.answers:
            reading = load_reading(preset)
        return SpeechToTextTrainee(
            modules, tokenizer, frequencies, options, teacher, answers, recogniser, reading
        )

    def export(self, config: TrainingConfig, weights: Weights, folder: Path | None) -> Path:
        """Writes the modules as an aligned set; see `Stage.export`."""
        preset = load_preset(config.preset)
        tokenizer = Tokenizer.from_file(
            str(weights_folder(config.preset, "llm") / "tokenizer.json")
        )
        modules = _modules(config.preset, preset, weights, tokenizer, Counter(), _options(config))
        reading = _options(config).reading
        return write_aligned(
            preset, modules, folder=folder, dtype=torch.float16, reading_along=reading
        )


class SpeechToTextTrainee(Trainee):
    """The listening modules, and what teaches them.

    Args:
        modules: `MODULES`, by their names.
        tokenizer: the LLM's.
        frequencies: `[pieces]`, how often the training text has each.
        options: of the stage.
        teacher: the pretrained voice encoder, or None.
        answers: the frozen LLM and what it says, or None.
        recogniser: the pretrained recogniser and what it makes of the frames, or None.
        reading: the recogniser that reads along for the LLM, or None.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        tokenizer: Tokenizer,
        frequencies: Tensor,
        options: SpeechToTextOptions,
        teacher: nn.Module | None,
        answers: OwnAnswers | None,
        recogniser: RecogniserLoss | None = None,
        reading: Reading | None = None,
    ) -> None:
        super().__init__()
        self.listening = ListeningModel(
            cast(BlockStreamingEncoder, modules["voice_encoder"]),
            cast(InputProjector, modules["input_projector"]),
            cast(RecognitionHead, modules["recognition_head"]),
        )
        self.teacher, self.answers, self.recogniser = teacher, answers, recogniser
        self.reading = reading
        self.wants_clean = teacher is not None
        # What stands behind the frames counts only where it learns too.
        self._listens = any((options.letters, options.pieces, options.words, options.answers))
        encoder = self.listening.encoder
        self._block = encoder.block_frames, encoder.left_blocks
        self.best = "wer" if self._listens else "wer_recogniser"
        if answers is not None:
            self.best = "answers"
        self._tokenizer, self._options = tokenizer, options
        self._remembered = RememberedFrames(options.remember_mb) if options.remember_mb else None
        self._pieces = PieceTokenizer(tokenizer, self.listening.head.pieces)
        # What is never heard in training may be drawn too, and common pieces not always.
        self._drawn = (frequencies + 1).sqrt()

    def kept(self) -> Mapping[str, nn.Module]:
        """The listening modules."""
        model = self.listening
        return dict(zip(MODULES, (model.encoder, model.projector, model.head), strict=True))

    def train(self, mode: bool = True) -> SpeechToTextTrainee:
        """Sets the mode; what teaches is never trained."""
        super().train(mode)
        self._hear_in(self._block[0])
        for frozen in (self.teacher, self.answers, self.recogniser):
            if frozen is not None:
                frozen.eval()
        return self

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted sum and its parts; see `Trainee.losses`."""
        options, listening = self._options, self.listening
        if options.joined_seconds:
            batch = joined(batch, options.joined_seconds)
        if options.blocks:
            self._hear_in(options.blocks[int(torch.randint(len(options.blocks), ()))])
        if self._remembered is None:
            frames, counts = listening.frames(batch.samples, batch.lengths)
        else:
            frames, counts = self._remembered(listening, batch)
        parts: dict[str, Tensor] = {}
        if self._listens:
            heard = listening.hear(frames, counts)
            if options.letters or options.pieces or options.words:
                parts |= self._recognition(batch, heard)
            if self.answers is not None:
                parts["answers"] = self.answers(self._rows(heard), batch.texts)
        if self.teacher is not None:
            parts["distillation"] = self._distillation(frames, counts, batch)
        if self.recogniser is not None:
            parts["recogniser"] = self.recogniser(frames, counts, batch.texts, batch.words)
        total = torch.stack([getattr(options, name) * part for name, part in parts.items()]).sum()
        return {"loss": total, **parts}

    def _rows(self, heard: Heard) -> ReadRows:
        """What the LLM reads of a batch."""
        if self.reading is None:
            return self.listening.merged(heard)
        return self.listening.read(heard, self.reading)

    def _hear_in(self, frames: int) -> None:
        """Sets the block of the stream, with as much before it as the preset's has."""
        encoder, (preset, left) = self.listening.encoder, self._block
        encoder.block_frames, encoder.left_blocks = frames, max(1, preset * left // frames)

    def _recognition(self, batch: Batch, heard: Heard) -> dict[str, Tensor]:
        """Losses of letters and of pieces, and of both word by word."""
        options, listening, device = self._options, self.listening, batch.samples.device
        words = batch.words if options.words else ()
        texts = batch.texts[: len(words)]
        targets = targets_of(batch.texts, self._pieces)
        cuts = piece_cuts(texts, words, listening.piece_seconds, self._pieces)
        said = torch.cat((targets.pieces.flatten(), cuts.targets.flatten()))
        sampled = sampled_classes(
            said, self._drawn, options.sampled_pieces, torch.default_generator
        )
        classes = sampled.classes
        found = listening.pieces(heard, Sampled(classes.to(device), sampled.offsets.to(device)))
        targets = replace(targets, pieces=torch.searchsorted(classes, targets.pieces)).to(device)
        parts = {
            "letters": recognition_loss(
                heard.letters, heard.frame_lengths, targets.letters, targets.letter_lengths
            ),
            "pieces": recognition_loss(found, heard.lengths, targets.pieces, targets.piece_lengths),
        }
        if options.words:
            cuts = replace(cuts, targets=torch.searchsorted(classes, cuts.targets)).to(device)
            letters = letter_cuts(texts, words, listening.letter_seconds).to(device)
            parts["words"] = cut_loss(heard.letters, heard.frame_lengths, letters) + cut_loss(
                found, heard.lengths, cuts
            )
        return parts

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Word and letter error rates, and the distance of answers where there are any."""
        wanted: list[str] = []
        words: list[str] = []
        letters: list[str] = []
        read: list[str] = []
        answers = 0.0
        for batch in batches:
            frames, counts = self.listening.frames(batch.samples, batch.lengths)
            wanted += batch.texts
            if self.recogniser is not None:
                read += self.recogniser.recognise(frames, counts)
            if not self._listens:
                continue
            heard = self.listening.hear(frames, counts)
            tokens = self.listening.head.decode(heard.embeddings, heard.lengths)
            words += self._tokenizer.decode_batch(tokens)
            letters += letters_text(heard.letters, heard.frame_lengths)
            if self.answers is not None:
                distance = self.answers(self._rows(heard), batch.texts)
                answers += float(distance) * len(batch.texts)
        references = [plain_words(text) for text in wanted]
        figures: dict[str, float] = {}
        if self.recogniser is not None:
            figures["wer_recogniser"] = error_rate(references, [plain_words(text) for text in read])
        if self._listens:
            spelled = [plain_words(text) for text in letters]
            figures["wer"] = error_rate(references, [plain_words(text) for text in words])
            figures["wer_letters"] = error_rate(references, spelled)
            figures["cer_letters"] = error_rate(references, spelled, letters=True)
        if self.answers is not None:
            figures["answers"] = answers / max(1, len(wanted))
        return figures

    def _distillation(self, frames: Tensor, counts: Tensor, batch: Batch) -> Tensor:
        assert self.teacher is not None
        clean = batch.samples if batch.clean is None else batch.clean
        with torch.no_grad():
            wanted = self.teacher(clean)
        count = min(wanted.shape[1], frames.shape[1])
        there = is_there(counts.clamp(max=count), count)
        alike = F.cosine_similarity(frames[:, :count].float(), wanted[:, :count], dim=-1)
        return (1 - alike)[there].mean()


def _recogniser_loss(
    name: str, encoder: BlockStreamingEncoder, options: SpeechToTextOptions
) -> RecogniserLoss:
    """The pretrained recogniser, which knows the frames of its own encoder."""
    recogniser = cast(MoonshineRecognizer, load_module(name, "recognizer"))
    tokenizer = Tokenizer.from_file(str(weights_folder(name, "recognizer") / "tokenizer.json"))
    seconds = encoder.samples_per_frame / SAMPLE_RATE_HZ
    return RecogniserLoss(recogniser, tokenizer, seconds, options.recogniser_behind)


def _options(config: TrainingConfig) -> SpeechToTextOptions:
    return build(SpeechToTextOptions, config.options, "options")


def _modules(
    name: str,
    preset: Preset,
    weights: Weights,
    tokenizer: Tokenizer,
    counts: Mapping[int, int],
    options: SpeechToTextOptions,
) -> dict[str, nn.Module]:
    """The listening modules with the weights that there are, others pretrained or drawn."""
    if "voice_encoder" in weights:
        encoder = build_module(preset, "voice_encoder")
        fill(encoder, "voice_encoder", weights["voice_encoder"])
    else:
        encoder = load_module(name, "voice_encoder")
    projector = build_module(preset, "input_projector")
    if "input_projector" in weights:
        fill(projector, "input_projector", weights["input_projector"])
    state = weights.get("recognition_head")
    if state is None:
        pieces = _chosen_pieces(tokenizer, counts, options.minimum_count)
        head = _head(preset, name, pieces, _spellings(tokenizer, pieces))
    else:
        # Not from the clips' own text: the head of a run that goes on must stay as large as it is.
        if options.texts and counts:
            pieces = _chosen_pieces(tokenizer, counts, options.minimum_count)
            state = _with_pieces(state, pieces, tokenizer)
        head = _head(preset, name, state["pieces"].long(), state["spellings"])
        fill(head, "recognition_head", {**state, "pieces": state["pieces"].long()})
    return dict(zip(MODULES, (encoder, projector, head), strict=True))


def _head(preset: Preset, name: str, pieces: Tensor, spellings: Tensor) -> RecognitionHead:
    """A recognition head of these pieces, with their rows of the LLM's table."""
    table = select(preset, "llm", load_state_dict(weights_folder(name, "llm")))[_TABLE]
    sizes = preset.recognition_head
    config = RecognitionHeadConfig(
        sizes.vocabulary_size, sizes.width, len(pieces), sizes.spelling_width, sizes.key_width
    )
    return RecognitionHead(config, table[pieces].float(), pieces, spellings)


def _with_pieces(state: StateDict, wanted: Tensor, tokenizer: Tokenizer) -> StateDict:
    """A head's weights with those pieces too that it lacks.

    What it scores a piece by is made of the spelling; a new one is as likely as the others are.
    """
    known = state["pieces"].long()
    new = wanted[~torch.isin(wanted, known)]
    bias = state["bias"].float()
    return {
        **state,
        "pieces": torch.cat((known, new)),
        "spellings": torch.cat((state["spellings"], _spellings(tokenizer, new))),
        "bias": torch.cat((bias, bias.mean().expand(len(new)))),
    }


def _spellings(tokenizer: Tokenizer, pieces: Tensor) -> Tensor:
    return spellings_of([tokenizer.decode([token]) for token in pieces.tolist()])


def _chosen_pieces(tokenizer: Tokenizer, counts: Mapping[int, int], minimum: int) -> Tensor:
    """Token ids that are to be recognised: those that are said, and what spells all others."""
    special = tokenizer.get_added_tokens_decoder()
    chosen = []
    for token in range(tokenizer.get_vocab_size()):
        text = "" if token in special else tokenizer.decode([token])
        letter = len(text.lstrip(" ")) <= 1
        if text and text.isascii() and text.isprintable():
            chosen += [token] if letter or counts.get(token, 0) >= minimum else []
    return torch.tensor(chosen)


def _texts(options: SpeechToTextOptions, sources: Sequence[Source]) -> Iterator[str]:
    """The texts that say which pieces are to be recognised; none without sources."""
    if not options.texts or not sources:
        yield from (clip.text for source in sources for clip in source.clips)
        return
    try:
        for line in read_lines(Path(options.texts).expanduser()):
            yield str(line["text"])
    except (DataError, KeyError) as error:
        raise TrainingError(f"options.texts cannot be used: {error}") from error


def _counts(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[int]:
    """How often texts have each token."""
    counts: Counter[int] = Counter()
    rest = iter(texts)
    while some := list(islice(rest, _COUNTED)):
        for encoding in tokenizer.encode_batch(some, add_special_tokens=False):
            counts.update(encoding.ids)
    return counts
