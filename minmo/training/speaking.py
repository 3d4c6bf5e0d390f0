"""What text-to-speech and speech-to-speech train: output projector and voice token LM.

Both stages of the paper (section 3.4) move the same modules, towards the speech tokens of a
recording, from what the LLM makes of its text. They differ in their data: clips of texts, then
answers to what somebody has said, in the manner that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from minmo.engine.prompt import ChatFormat
from minmo.engine.spoken_text import SpokenText, spoken_text
from minmo.engine.token_spellings import token_spellings
from minmo.model.interleave import Interleaved, collate, interleave
from minmo.model.llm import Llm
from minmo.model.output_projector import OutputProjector
from minmo.model.token_loss import IGNORED, token_loss
from minmo.model.voice_token_lm import VoiceTokenLm
from minmo.presets import Preset, build_module, load_preset, modules_of
from minmo.training.batches import Batch, Source
from minmo.training.config import TrainingConfig
from minmo.training.errors import TrainingError
from minmo.training.filling import fill
from minmo.training.free_speech import speak_freely
from minmo.training.means import WeightedMeans
from minmo.training.mel_data import open_tokens
from minmo.training.named_by import NAMED_BY, NamedBy, named_by
from minmo.training.shar import Clip
from minmo.training.speech_tokens import Tokens
from minmo.training.stage import Stage, Trainee, Weights
from minmo.training.tables import build
from minmo.training.teacher_forcing import LlmStates, TeacherForcing
from minmo.weights.load import load_state_dict, weights_folder
from minmo.weights.spoken import write_spoken

MODULES = ("output_projector", "voice_token_lm")
QUERY_FIELDS = ("query", "instruct")
"""Fields of a clip's `custom` that hold what the user has said before it."""


@dataclass(frozen=True)
class SpeakingOptions:
    """What the LLM reads, and what the voice reads of it.

    Attributes:
        label_smoothing: share of a target's probability that all classes divide.
        system_prompts: who the LLM is told it is, one of them for each clip; empty for nothing.
        user_turns: what the user has said before a clip that does not say so itself, one of them
            for each; empty for nothing.
        without_hidden_states: zeros in their place, to see what they contribute.
        without_query: no query in front, to see what it contributes.
        remember_mb: megabytes of the LLM's hidden states to keep, some 20 for an hour of speech at
            the width of SmolLM2-135M; 0 to read each text each time.
        llm_precision: of the frozen LLM's computation.
        free_clips: clips of the valid set, at most, that are spoken freely in each measurement.
    """

    label_smoothing: float = 0.1
    system_prompts: tuple[str, ...] = ("",)
    user_turns: tuple[str, ...] = ("",)
    without_hidden_states: bool = False
    without_query: bool = False
    remember_mb: float = 0.0
    llm_precision: Literal["float32", "bfloat16"] = "float32"
    free_clips: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing:g}: it is 0 or more, below 1"
            )
        if not self.system_prompts or not self.user_turns:
            raise ValueError('system_prompts and user_turns name one at least; "" is nothing')
        if self.remember_mb < 0 or self.free_clips < 0:
            raise ValueError("remember_mb and free_clips are 0 or more")


class SpeakingStage(Stage):
    """What the two stages share."""

    def check(self, config: TrainingConfig) -> None:
        """Refuses what it does not know; see `Stage.check`."""
        _options(config)
        for module in config.optimizer.learning_rates:
            if module not in MODULES:
                raise TrainingError(
                    f"optimizer.learning_rates names {module!r}; {self.name} trains: "
                    f"{', '.join(MODULES)}"
                )
        preset = load_preset(config.preset)
        missing = [name for name in (*MODULES, "llm") if name not in modules_of(preset)]
        if missing:
            raise TrainingError(
                f"preset {preset.name!r} has no {' and no '.join(missing)}, which {self.name} needs"
            )
        if preset.voice_token_lm.text_vocabulary:
            raise TrainingError(
                f"the voice token LM of preset {preset.name!r} reads text by a table of its own: "
                f"{self.name} trains one that reads the LLM, with text_vocabulary = 0"
            )

    def build(
        self, config: TrainingConfig, weights: Weights, sources: Sequence[Source]
    ) -> SpeakingTrainee:
        """Builds the modules and brings the LLM; see `Stage.build`."""
        options, preset = _options(config), load_preset(config.preset)
        tokens = open_tokens(config)
        named = NamedBy.going_on(weights, tokens.tokenizer_sha256)
        folder = weights_folder(config.preset, "llm")
        try:
            chat = ChatFormat.from_folder(folder)
        except ValueError as error:
            raise TrainingError(f"the LLM of {config.preset} cannot be asked: {error}") from error
        dtype = getattr(torch, options.llm_precision)
        llm = Llm.from_state_dict(preset.llm, load_state_dict(folder), dtype)
        modules = _modules(preset, weights)
        if "output_projector" not in weights:
            _balance(cast(OutputProjector, modules["output_projector"]), llm)
        forcing = TeacherForcing(llm, options.remember_mb)
        return SpeakingTrainee(modules, forcing, chat, tokens, options, named)

    def export(self, config: TrainingConfig, weights: Weights, folder: Path | None) -> Path:
        """Writes both modules into the voice set; see `Stage.export`."""
        preset = load_preset(config.preset)
        return write_spoken(
            preset, _modules(preset, weights), folder, tokenizer_sha256=named_by(weights)
        )


class _Utterance(NamedTuple):
    """A clip's text as the voice reads it.

    Attributes:
        clip: whose.
        text: what the LLM reads.
        states: what it makes of it.
    """

    clip: Clip
    text: SpokenText
    states: LlmStates


class SpeakingTrainee(Trainee):
    """Output projector and voice token LM, and the frozen LLM that they read.

    Args:
        modules: `MODULES`, by their names.
        forcing: the LLM.
        chat: its format.
        tokens: speech tokens of each clip, by its id.
        options: of the stage.
        named: by whom they were.
    """

    best = "cross_entropy"
    spellings: Tensor

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        forcing: TeacherForcing,
        chat: ChatFormat,
        tokens: Mapping[str, Tokens],
        options: SpeakingOptions,
        named: NamedBy,
    ) -> None:
        super().__init__()
        self.named_by = named
        self.projector = cast(OutputProjector, modules["output_projector"])
        self.lm = cast(VoiceTokenLm, modules["voice_token_lm"])
        self.forcing = forcing
        self._chat, self._tokens, self._options = chat, tokens, options
        if self.projector.spelling is not None:
            spellings = token_spellings(chat, forcing.llm.config.vocabulary_size)
            self.register_buffer("spellings", spellings, persistent=False)

    def kept(self) -> Mapping[str, nn.Module]:
        """Both modules, and whose tokens they have learned."""
        both = dict(zip(MODULES, (self.projector, self.lm), strict=True))
        return both | {NAMED_BY: self.named_by}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy with label smoothing, and how often the target is the likeliest class."""
        logits, targets = self.predictions(batch.clips)
        found = token_loss(logits, targets, self._options.label_smoothing)
        return {"loss": found.loss, "accuracy": found.accuracy}

    def predictions(self, clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
        """Predicts every speech token of clips from those before it.

        Returns:
            Logits `[targets, classes]`, float32, and targets `[targets]`, of one clip after the
            other: speech tokens, ends and fills.

        Raises:
            TrainingError: a clip has no speech tokens, or more than the voice token LM holds.
        """
        utterances = [self._utterance(clip) for clip in clips]
        sequences = [self._sequence(one) for one in utterances]
        vectors = pad_sequence(self._vectors(utterances), batch_first=True)
        prefixes = pad_sequence(self._prefixes(utterances), batch_first=True)
        batch = collate(sequences).to(vectors.device)
        embeddings = self.lm.embed_batch(batch, vectors, prefixes)
        hidden = self.lm.trunk.forward_sequence(embeddings, batch.lengths)
        # Text and queries predict nothing: logits, most of the memory, are made of the rest alone.
        there = batch.targets != IGNORED
        return self.lm.logits(hidden[there]), batch.targets[there]

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """How well speech is predicted, and how well its end is found.

        Returns:
            `cross_entropy`, nats for each target; `accuracy`, the share of speech tokens that are
            predicted as the likeliest, given all before them; and where clips are spoken freely
            `end_error`, by how many speech tokens, on average, they get longer or shorter than the
            recording.
        """
        means, clips = WeightedMeans(), list[Clip]()
        for batch in batches:
            logits, targets = self.predictions(batch.clips)
            is_speech = targets < self.lm.config.end
            count = max(1, int(is_speech.sum()))
            right = ((logits.argmax(-1) == targets) & is_speech).sum()
            means.add("cross_entropy", token_loss(logits, targets).loss, len(targets))
            means.add("accuracy", right / count, count)
            clips += batch.clips
        # Short and long ones alike: they come in the order of their lengths.
        chosen = clips[:: max(1, len(clips) // max(1, self._options.free_clips))]
        chosen = chosen[: self._options.free_clips]
        if chosen:
            for clip, spoken in zip(chosen, self.speak(chosen), strict=True):
                means.add("end_error", abs(len(spoken) - len(self._tokens[clip.id])), 1)
        return means.figures()

    def speak(self, clips: Sequence[Clip]) -> list[list[int]]:
        """Speech tokens of the texts of clips, as the voice draws them by itself."""
        utterances = [self._utterance(clip) for clip in clips]
        return speak_freely(self.lm, self._vectors(utterances), self._prefixes(utterances))

    def _vectors(self, utterances: Sequence[_Utterance]) -> list[Tensor]:
        """Semantic vectors `[tokens, width]` of each text."""
        ids = [token for one in utterances for token in one.text.said_tokens]
        spelled = None
        if self.projector.spelling is not None:
            known, places = torch.unique(torch.tensor(ids), return_inverse=True)
            spelled = self.projector.spell(self.spellings[known])[places]
        embeddings = torch.cat([one.states.said for one in utterances])
        states = torch.cat([one.states.said_states for one in utterances])
        projected = self.projector(embeddings, self._read(states), spelled)
        return list(projected.split([len(one.text.said) for one in utterances]))

    def _prefixes(self, utterances: Sequence[_Utterance]) -> list[Tensor]:
        """Vectors `[positions, width]` of each query, which has no letters: it may be speech."""
        embeddings = torch.cat([one.states.query for one in utterances])
        states = torch.cat([one.states.query_states for one in utterances])
        counts = [len(one.states.query) for one in utterances]
        return list(self.projector(embeddings, self._read(states)).split(counts))

    def _read(self, states: Tensor) -> Tensor:
        return torch.zeros_like(states) if self._options.without_hidden_states else states

    def _utterance(self, clip: Clip) -> _Utterance:
        text = spoken_text(self._chat, clip.text, *_before(clip, self._options))
        states = self.forcing(clip.id, text)
        if self._options.without_query:
            states = states._replace(query=states.query[:0], query_states=states.query_states[:0])
        return _Utterance(clip, text, states)

    def _sequence(self, utterance: _Utterance) -> Interleaved:
        """What the voice token LM reads and predicts of a clip."""
        clip, config = utterance.clip.id, self.lm.config
        if clip not in self._tokens:
            raise TrainingError(
                f"clip {clip} has no speech tokens: run `minmo data tokens` for its folder again"
            )
        try:
            return interleave(
                len(utterance.text.said),
                self._tokens[clip].tolist(),
                speech_tokens=config.speech_tokens,
                max_positions=config.max_context,
                text_group=config.text_group,
                speech_group=config.speech_group,
                prefix=len(utterance.states.query),
            )
        except ValueError as error:
            raise TrainingError(
                f"clip {clip} cannot be learned: {error}; leave it out with data.longest"
            ) from error


def asked(clip: Clip) -> list[str]:
    """What the user may have said before a clip, as its `custom` has it; most have nothing."""
    return [str(clip.custom[name]) for name in QUERY_FIELDS if clip.custom.get(name)]


def _before(clip: Clip, options: SpeakingOptions) -> tuple[str, str]:
    """A clip's query and system prompt; the same every time, so that it can be remembered."""
    number = crc32(clip.id.encode())
    queries, prompts = asked(clip) or options.user_turns, options.system_prompts
    return queries[number % len(queries)], prompts[number // len(queries) % len(prompts)]


def _options(config: TrainingConfig) -> SpeakingOptions:
    return build(SpeakingOptions, config.options, "options")


def _modules(preset: Preset, weights: Weights) -> dict[str, nn.Module]:
    """Both modules, with the weights that there are, others drawn."""
    modules = {name: build_module(preset, name) for name in MODULES}
    for name in MODULES:
        if name in weights:
            fill(modules[name], name, weights[name])
    return modules


@torch.no_grad()
def _balance(projector: OutputProjector, llm: Llm) -> None:
    """Lets embeddings weigh as much as hidden states at first.

    They are many times smaller, 13 times in SmolLM2-135M, and which word it is would be learned as
    much more slowly than what was said around it.
    """
    states, embeddings = (_size(weight) for weight in (llm.norm.weight, llm.embed_tokens.weight))
    projector.linear.weight[:, : projector.config.input_width] *= states / embeddings


def _size(weight: Tensor) -> float:
    return float(weight.float().square().mean().sqrt())
