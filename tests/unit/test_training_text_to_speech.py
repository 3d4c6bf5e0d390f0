"""Text-to-speech on a tiny preset: its recipes, and that it learns what the engine will serve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minmo.engine.operations import Generate, Prefill, Prefilled, TokenDrawn
from minmo.engine.prompt import ChatFormat
from minmo.engine.spoken_text import spoken_text
from minmo.engine.token_spellings import token_spellings
from minmo.engine.voice import Query, TextToken
from minmo.engine.voice_decoder.modules import VoiceModules
from minmo.engine.voice_decoder.sequence import Rates, SpeechSequence
from minmo.engine.voice_decoder.token_reader import TokenReader
from minmo.model.llm import Llm
from minmo.model.speaker import random_speaker
from minmo.model.spelling import LONGEST_SPELLING
from minmo.model.voice_token_lm import VoiceTokenLm
from minmo.presets import build_module, load_preset
from minmo.training import batches, checkpoint
from minmo.training.config import TrainingConfig
from minmo.training.curves import read_curve
from minmo.training.errors import TrainingError
from minmo.training.exporting import export_run
from minmo.training.named_by import NamedBy
from minmo.training.shar import Clip
from minmo.training.speaking import MODULES, SpeakingOptions, SpeakingTrainee
from minmo.training.teacher_forcing import TeacherForcing
from minmo.training.text_to_speech import TextToSpeechStage
from minmo.training.trainer import train
from minmo.v1 import common_pb2, llm_pb2
from minmo.weights.load import load_state_dict, weights_folder
from minmo.weights.modules import check_trained_against, load_module, trained_against
from services.llm.prompt import PromptReader
from services.orchestrator import history, items
from tests.unit.tiny_llm import Desk
from tests.unit.tiny_presets import write_preset
from tests.unit.tiny_speaking import config, make_place, name_tokens, spelled_aloud
from tests.unit.tiny_training import silent, write_shard

QUERY, SYSTEM = "say the cat", "be kind"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speaking")
    preset = make_place(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINMO_HOME", str(folder / "home"))
        for name, count in (("train.0000", 10), ("valid.0000", 5)):
            shard = write_shard(folder / "speech", name, count)
            name_tokens(preset, shard, lambda text, _: spelled_aloud(text))
    return folder


@pytest.fixture(autouse=True)
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINMO_HOME", str(place / "home"))


def run(settings: TrainingConfig, folder: Path) -> Mapping[str, Mapping[str, Tensor]]:
    train(settings, TextToSpeechStage(), folder, silent())
    found = checkpoint.latest(folder)
    assert found is not None
    return checkpoint.read_weights(found)


def rows(folder: Path, name: str = "train") -> list[dict[str, float]]:
    return read_curve(folder / "curves" / f"{name}.csv")


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def trainee(
    place: Path, tokens: Mapping[str, Any], *, loud: float = 5.0, **options: Any
) -> SpeakingTrainee:
    """One whose voice token LM tells its inputs apart, though it has learned nothing."""
    preset = load_preset(str(place / "tiny.toml"))
    folder = weights_folder(preset, "llm")
    llm = Llm.from_state_dict(preset.llm, load_state_dict(folder))
    torch.manual_seed(0)
    modules = {name: build_module(preset, name) for name in MODULES}
    with torch.no_grad():
        for parameter in modules["voice_token_lm"].parameters():
            parameter.mul_(loud) if parameter.ndim > 1 else parameter
    chat = ChatFormat.from_folder(folder)
    arrays = {clip: np.array(row, np.int16) for clip, row in tokens.items()}
    made = SpeakingTrainee(
        modules,
        TeacherForcing(llm, 1.0),
        chat,
        arrays,
        SpeakingOptions(**options),
        NamedBy("00" * 32),
    )
    return made.eval()


def clip(name: str, text: str, **custom: Any) -> Clip:
    return Clip(name, text, "s", 1.0, "nowhere.tar", 0, 0, custom)


# --- its recipes


def test_the_recipes_move_what_they_name_and_give_modules_that_load(
    place: Path, tmp_path: Path
) -> None:
    first = run(config(place, "speak-project"), tmp_path / "project")
    drawn = run(config(place, "speak-project", steps=1), tmp_path / "one")
    assert same(first["voice_token_lm"], drawn["voice_token_lm"])
    assert not same(first["output_projector"], drawn["output_projector"])

    second = run(config(place, "speak", init=str(tmp_path / "project")), tmp_path / "speak")
    third = run(config(place, "speak-voice", init=str(tmp_path / "speak")), tmp_path / "voice")
    assert not same(second["voice_token_lm"], first["voice_token_lm"])
    assert not same(third["voice_token_lm"], second["voice_token_lm"])
    for name in ("project", "speak", "voice"):
        (valid,) = rows(tmp_path / name, "valid")
        assert {"cross_entropy", "accuracy", "end_error"} <= valid.keys()
        assert all(math.isfinite(value) for row in rows(tmp_path / name) for value in row.values())

    preset = str(place / "tiny.toml")
    folder = export_run(tmp_path / "voice", tmp_path / "set")
    kept = checkpoint.trained_weights(tmp_path / "voice")
    for name in MODULES:
        module = load_module(preset, name, folder=folder / name)
        for key, value in module.state_dict().items():
            assert torch.equal(value, kept[name][key].half().float()), key
        assert trained_against(folder / name).keys() == {"llm", "speech_tokenizer"}
        assert check_trained_against(preset, name, folder / name) == ()


def test_speech_is_learned(place: Path, tmp_path: Path) -> None:
    rates = dict.fromkeys(MODULES, 1e-2)
    learning = {"optimizer__learning_rates": rates, "optimizer__ema": 0.0}
    run(config(place, "speak", steps=70, **learning), tmp_path)
    curve, valid = rows(tmp_path), rows(tmp_path, "valid")[-1]
    # Label smoothing leaves a share of each target to guess.
    assert curve[-1]["loss"] < 0.6 * curve[0]["loss"]
    assert curve[0]["accuracy"] < 0.3
    assert valid["accuracy"] > 0.7


def test_a_run_that_was_cut_goes_on_with_what_the_llm_made(place: Path, tmp_path: Path) -> None:
    settings = config(place, "speak", steps=6, watch__save_steps=3, watch__keep=9)
    whole = run(settings, tmp_path / "whole")
    cut = tmp_path / "cut"
    run(settings, cut)
    for path in (cut / "checkpoints").iterdir():
        if path.name != "step-00000003":
            for part in path.iterdir():
                part.unlink()
            path.rmdir()
    again = run(settings, cut)
    assert all(same(whole[name], again[name]) for name in MODULES)


def test_audio_is_not_read(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("audio was read")

    monkeypatch.setattr(batches, "read_audio", refuse)
    run(config(place, "speak", steps=1), tmp_path)
    (row,) = rows(tmp_path)
    assert row["hours"] > 0
    with pytest.raises(AssertionError, match="audio was read"):
        run(config(place, "speak", steps=1, data__audio=True), tmp_path / "heard")


# --- what is trained is what is served


def test_the_llm_reads_what_it_reads_in_the_product(place: Path) -> None:
    chat = ChatFormat.from_folder(weights_folder(str(place / "tiny.toml"), "llm"))
    content = [
        *history.told_by_system(SYSTEM),
        items.role_start(common_pb2.ROLE_USER),
        items.text(QUERY),
        items.turn_end(),
        items.role_start(common_pb2.ROLE_ASSISTANT),
        items.text("the mat sat"),
    ]
    request = llm_pb2.RunRequest(operation_id="o", session_id="s", branch="main")
    request.prefill.parts.extend(item.part for item in content)
    read = PromptReader(chat, 24, 1000, 1 << 20).read(request).prefill.parts
    ids = [list(part.tokens.ids) for part in read]
    made = spoken_text(chat, "the mat sat", QUERY, SYSTEM)
    assert made.tokens == [token for part in ids for token in part]
    assert made.said_tokens == ids[-1]
    assert [made.tokens[place] for place in made.query] == ids[4]
    alone = spoken_text(chat, "the mat sat")
    assert alone.tokens == [*ids[-2], *ids[-1]]
    assert len(alone.query) == 0


def test_training_predicts_what_the_engine_draws_from(place: Path) -> None:
    """The LLM answers, the voice reads it as it comes; training then sees text and speech."""
    preset = load_preset(str(place / "tiny.toml"))
    made = trainee(place, {})
    llm, lm, projector = made.forcing.llm, made.lm, made.projector
    chat = ChatFormat.from_folder(weights_folder(preset, "llm"))
    vocabulary = preset.llm.vocabulary_size
    desk = Desk(llm, stop_tokens=frozenset([chat.end_token]), context=128)
    heard = spoken_text(chat, "", QUERY, SYSTEM)
    try:
        content = np.array(heard.tokens)
        read = desk.ask(Prefill(0, (content,), return_hidden_states=True))
        assert isinstance(read, Prefilled)
        assert read.hidden_states is not None
        ticket = desk.hand_in(Generate(len(content), 12, return_hidden_states=True))
        ticket.wait()
    finally:
        desk.engine.stop()
    answer = [event for event in ticket.events if isinstance(event, TokenDrawn)]
    assert len(answer) == 12
    states = np.stack([event.hidden_state for event in answer if event.hidden_state is not None])
    query = Query(
        llm.embed(torch.tensor([heard.tokens[p] for p in heard.query])).numpy(),
        read.hidden_states[heard.query.start : heard.query.stop],
    )

    parts = {"voice_token_lm": lm, "output_projector": projector} | {
        name: build_module(preset, name).eval() for name in ("flow_matching", "vocoder")
    }
    modules = VoiceModules.load(
        parts.__getitem__,
        lambda: llm.embed_tokens.weight,
        lambda: token_spellings(chat, vocabulary),
    )
    tokens, seen = _drawn_by_engine(modules, [event.token for event in answer], states, query)

    class Answered(ChatFormat):
        """Random tokens are not what a tokenizer makes of their text."""

        def text(self, text: str) -> list[int]:
            return [event.token for event in answer] if text == "answer" else super().text(text)

    made._chat = Answered.from_folder(weights_folder(preset, "llm"))
    made._tokens = {"c": np.array(tokens, np.int16)}
    made._options = replace(made._options, system_prompts=(SYSTEM,))
    with torch.no_grad():
        logits, targets = made.predictions([clip("c", "answer", query=QUERY)])
    drawn = targets != lm.config.fill
    assert targets[drawn].tolist() == [*tokens, lm.config.end]
    # Training remembers hidden states in float16.
    torch.testing.assert_close(logits[drawn][: len(seen)], torch.stack(seen), atol=1e-2, rtol=1e-2)
    assert (logits[drawn][1:] - logits[drawn][:-1]).abs().mean() > 0.2


def _drawn_by_engine(
    modules: VoiceModules, text: list[int], states: Any, query: Query
) -> tuple[list[int], list[Tensor]]:
    """Speech tokens, and the logits that each was drawn from."""
    config = modules.lm.config
    rates = Rates(
        text_group=config.text_group,
        speech_group=config.speech_group,
        end=config.end,
        context=config.max_context,
        chunk_tokens=15,
        look_ahead_tokens=3,
        samples_per_token=960,
        sample_rate_hz=24_000,
        max_speech_per_vector=3,
    )
    reader = TokenReader(modules, 1, config.max_context, 64)
    sequence = SpeechSequence(rates, random_speaker(8), 0, query, False, 0.0)
    sequence.slot = 0
    seen: list[Tensor] = []
    logits = VoiceTokenLm.logits

    def watched(lm: VoiceTokenLm, hidden: Tensor) -> Tensor:
        found = logits(lm, hidden)
        seen.append(found[0])
        return found

    drawn: list[int] = []
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(VoiceTokenLm, "logits", watched)
        for number, token in enumerate(text):
            sequence.push([TextToken(token, "")], states[number : number + 1], 0.0)
            drawn += _read_on(reader, sequence)
        sequence.end()
        drawn += _read_on(reader, sequence)
    return [token for token in drawn if token != config.end], seen


def _read_on(reader: TokenReader, sequence: SpeechSequence) -> list[int]:
    drawn = []
    while sequence.has_reading:
        reading = sequence.next_reading(64)
        (token,) = reader.read([reading])
        assert token is None or isinstance(token, int)
        sequence.finish_reading(reading, token)
        drawn += [] if token is None else [token]
    return drawn


def test_free_speech_is_what_the_engine_says(place: Path) -> None:
    preset = load_preset(str(place / "tiny.toml"))
    made = trainee(place, {}, user_turns=(QUERY,))
    with torch.no_grad():
        made.lm.head_bias[made.lm.config.end] -= 1.0
    chat, llm = made._chat, made.forcing.llm
    texts = ["the cat sat on the mat and the cat", "a cat", "mat"]
    clips = [clip(f"c{number}", text) for number, text in enumerate(texts)]
    spoken = made.speak(clips)
    parts = {"voice_token_lm": made.lm, "output_projector": made.projector} | {
        name: build_module(preset, name).eval() for name in ("flow_matching", "vocoder")
    }
    modules = VoiceModules.load(
        parts.__getitem__,
        lambda: llm.embed_tokens.weight,
        lambda: token_spellings(chat, preset.llm.vocabulary_size),
    )
    found = made.forcing("other", spoken_text(chat, texts[0], QUERY))
    query = Query(found.query.numpy(), found.query_states.numpy())
    ids = spoken_text(chat, texts[0], QUERY).said_tokens
    tokens, _ = _drawn_by_engine(modules, ids, found.said_states.numpy(), query)
    count = min(len(tokens), len(spoken[0]))
    assert count >= 30
    assert spoken[0][:count] == tokens[:count]
    assert all(0 <= token < made.lm.config.end for said in spoken for token in said)
    assert all(len(said) <= 25 * 20 + 50 for said in spoken)


# --- what the voice reads


def test_letters_reach_the_voice_and_cost_nothing_where_there_are_none(place: Path) -> None:
    made = trainee(place, {"c": [1, 2, 3]})
    before, _ = made.predictions([clip("c", "the cat")])
    made.spellings = made.spellings.roll(1, 0)
    after, _ = made.predictions([clip("c", "the cat")])
    assert (before - after).abs().max() > 1e-3
    chat = ChatFormat.from_folder(weights_folder(str(place / "tiny.toml"), "llm"))
    spellings = token_spellings(chat, 330)
    assert spellings.shape == (330, LONGEST_SPELLING)
    word = chat.text("x cat")[1:]
    assert len(word) == 1
    shown = "".join(chr(code + 31) for code in spellings[word[0]].tolist() if code)
    assert shown == " cat"
    assert not spellings[chat.end_token].any()
    assert not spellings[320:].any()
    assert not spellings[chat.text("é")].any()


def test_what_is_left_out_is_left_out(place: Path) -> None:
    tokens = {"c": [1, 2, 3, 4]}
    here = clip("c", "the cat", query="sat")
    plain = trainee(place, tokens).predictions([here])[0]
    no_query = trainee(place, tokens, without_query=True)
    no_states = trainee(place, tokens, without_hidden_states=True)
    assert not torch.allclose(no_query.predictions([here])[0], plain)
    assert not torch.allclose(no_states.predictions([here])[0], plain)
    # The LLM has read another query: its hidden states would tell.
    other = replace(here, custom={"query": "mat"})
    blind = trainee(place, tokens, without_query=True, without_hidden_states=True)
    deaf = trainee(place, tokens, without_query=True, without_hidden_states=True)
    torch.testing.assert_close(blind.predictions([here])[0], deaf.predictions([other])[0])
    told = trainee(place, tokens, without_query=True)
    assert not torch.allclose(told.predictions([other])[0], no_query.predictions([here])[0])


def test_a_clip_learns_the_same_alone_and_beside_longer_ones(place: Path) -> None:
    tokens = {"a": [1, 2, 3], "b": [4] * 40, "c": [5] * 17}
    clips = [clip("a", "mat"), clip("b", "the cat sat on a mat", query="cat"), clip("c", "cat")]
    made = trainee(place, tokens)
    with torch.no_grad():
        together, targets = made.predictions(clips)
        alone = [made.predictions([one]) for one in clips]
    torch.testing.assert_close(together, torch.cat([logits for logits, _ in alone]))
    assert torch.equal(targets, torch.cat([wanted for _, wanted in alone]))


def test_the_llm_reads_a_text_once(place: Path) -> None:
    made = trainee(place, {})
    text = spoken_text(made._chat, "the cat", "sat")
    calls: list[int] = []
    plain = Llm.forward_sequence

    def counted(llm: Llm, *arguments: Any) -> Tensor:
        calls.append(1)
        return plain(llm, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Llm, "forward_sequence", counted)
        first, second = made.forcing("c", text), made.forcing("c", text)
        assert len(calls) == 1
        nothing = TeacherForcing(made.forcing.llm, 0.0)
        third, _ = nothing("c", text), nothing("c", text)
        assert len(calls) == 3
    for one, two, three in zip(first, second, third, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


# --- what is refused


def test_what_cannot_be_learned_is_said(place: Path, tmp_path: Path) -> None:
    made = trainee(place, {"long": [1] * 600, "strange": [9]})
    for name, message in (
        ("none", "clip none has no speech tokens: run `minmo data tokens`"),
        ("long", r"clip long cannot be learned: .* the voice token LM holds 512"),
        ("strange", "clip strange cannot be learned: "),
    ):
        with pytest.raises(TrainingError, match=message):
            made.predictions([clip(name, "the cat")])
    stage = TextToSpeechStage()
    with pytest.raises(TrainingError, match=r"names 'llm'; text-to-speech trains: output_proj"):
        stage.check(config(place, "speak", optimizer__learning_rates={"llm": 1e-3}))
    with pytest.raises(TrainingError, match="label_smoothing is 1: it is 0 or more, below 1"):
        stage.check(config(place, "speak", options__label_smoothing=1.0))
    with pytest.raises(TrainingError, match="user_turns name one at least"):
        stage.check(config(place, "speak", options__user_turns=[]))
    own = write_preset(tmp_path, "own", voice_token_lm={"text_vocabulary": 50})
    with pytest.raises(TrainingError, match="reads text by a table of its own"):
        stage.check(config(place, "speak", preset=str(own)))
    weights = {"output_projector": {"linear.bias": torch.zeros(3)}}
    with pytest.raises(TrainingError, match="output_projector to begin with are of another"):
        stage.build(config(place, "speak"), weights, [])
    write_shard(tmp_path / "new", "train.0000", 2)
    write_shard(tmp_path / "new", "valid.0000", 2)
    unnamed = config(place, "speak", data__folders={str(tmp_path / "new"): 1.0})
    with pytest.raises(TrainingError, match="run `minmo data tokens"):
        train(unnamed, stage, tmp_path / "run", silent())
