"""The vocoder on a tiny preset: what it hears, that it learns, and that it goes on exactly."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch
from torch import Tensor

from minmo.model.vocoder import Vocoder
from minmo.presets import build_module, load_preset
from minmo.training import checkpoint
from minmo.training.bandwidth import bandwidth_of, limit_band
from minmo.training.batches import Batch, Source, read_sources, read_valid, valid_batches
from minmo.training.clip_memory import ClipMemory
from minmo.training.config import TrainingConfig, load_config, with_changes
from minmo.training.crops import Crops
from minmo.training.curves import read_curve
from minmo.training.discriminators import LearningDiscriminators
from minmo.training.errors import TrainingError
from minmo.training.exporting import export_run
from minmo.training.initial import initial_weights
from minmo.training.pitch import PitchDistance, pitch_of
from minmo.training.shar import read_set
from minmo.training.speaker_table import SpeakerTable
from minmo.training.speech_tokens import digest_of, tokenizer_sha256, write_tokens
from minmo.training.stage import Weights
from minmo.training.trainer import train
from minmo.training.vocoder import VocoderStage, VocoderTrainee
from minmo.weights.modules import load_module, random_module, write_module
from minmo.weights.spoken import write_spoken
from tests.unit.tiny_presets import write_preset
from tests.unit.tiny_recordings import RATE, voice, write_recordings
from tests.unit.tiny_training import silent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocoder")
    write_preset(folder)
    write_recordings(folder / "speech", "train.0000", 8)
    write_recordings(folder / "speech", "valid.0000", 2)
    return folder


@pytest.fixture(autouse=True)
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINMO_HOME", str(place / "home"))


def config(place: Path, recipe: str = "vocoder", **changes: object) -> TrainingConfig:
    given = {
        "preset": str(place / "tiny.toml"),
        "threads": 1,
        "data.folders": {str(place / "speech"): 1.0},
        "data.seconds": 4.0,
        "data.pool": 2,
        "data.workers": 0,
        "schedule.steps": 4,
        "schedule.minutes": None,
        "watch.log_steps": 1,
        "watch.valid_minutes": None,
        "watch.save_minutes": None,
        "options.crops": 2,
        "options.crop_seconds": 0.2,
    }
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return with_changes(load_config(recipe), given | changes)


def trainee_of(settings: TrainingConfig, weights: Weights | None = None) -> VocoderTrainee:
    torch.manual_seed(0)
    return VocoderStage().build(settings, weights or {}, read_sources(settings.data))


def batch_of(settings: TrainingConfig) -> Batch:
    return next(valid_batches(read_valid(settings.data), settings.data, 0))


def rows(run: Path, name: str = "train") -> list[dict[str, float]]:
    return read_curve(run / "curves" / f"{name}.csv")


def test_pitch_is_that_of_each_frame() -> None:
    low, high = voice(120, 0.5), voice(210, 0.5)
    silence = np.zeros(RATE // 2, dtype=np.float32)
    sound = torch.from_numpy(np.concatenate((low, silence, high, silence)))
    found = pitch_of(sound, RATE, 480)
    assert found.shape == (100,)
    # Voices begin and end within two frames of where they do.
    assert torch.allclose(found[2:23], torch.tensor(120.0), rtol=0.01)
    assert torch.allclose(found[52:73], torch.tensor(210.0), rtol=0.01)
    assert not found[27:48].any()
    assert not found[77:].any()
    assert pitch_of(torch.zeros(RATE), RATE, 480).tolist() == [0.0] * 50
    assert len(pitch_of(sound[:1000], RATE, 480)) == 2


def test_pitch_follows_a_glide_at_the_middle_of_each_frame() -> None:
    time = np.arange(RATE) / RATE
    phase = 2 * np.pi * (120 * time + 60 * time**2)
    numbers = np.arange(1, 20)
    waves = np.sin(phase[:, None] * numbers) / numbers
    found = pitch_of(torch.from_numpy(0.2 * waves.sum(1)).float(), RATE, 480)
    middles = (torch.arange(50) + 0.5) / 50
    assert torch.allclose(found[5:45], (120 + 120 * middles)[5:45], rtol=0.005)


def test_pitch_is_compared_where_both_have_one() -> None:
    made, real = torch.tensor([200.0, 0, 100, 0]), torch.tensor([100.0, 100, 0, 0])
    distance = PitchDistance.between(made, real)
    assert distance.figures() == {"pitch_cents": 1200, "voicing_error": 0.5}
    both = distance.plus(PitchDistance.between(real, real))
    assert both.figures()["pitch_cents"] == pytest.approx(1200 / 3**0.5)
    assert PitchDistance().figures() == {"pitch_cents": 0, "voicing_error": 0}


def test_a_band_that_is_lost_is_noticed() -> None:
    sound = voice(120, 1.0)
    assert bandwidth_of(torch.from_numpy(sound), RATE) == RATE / 2
    narrow = soxr.resample(soxr.resample(sound, RATE, 16_000), 16_000, RATE)
    assert 7000 < bandwidth_of(torch.from_numpy(narrow), RATE) < 7800
    assert bandwidth_of(torch.from_numpy(sound), RATE, 8000.0) == pytest.approx(7600)
    assert bandwidth_of(torch.zeros(5000), RATE) == RATE / 2
    both = torch.from_numpy(np.stack((sound, sound)))
    limited = limit_band(both, torch.tensor([RATE / 2, 8000.0]), RATE)
    assert torch.allclose(limited[0], both[0], atol=1e-5)
    spectra = torch.fft.rfft(both[1]), torch.fft.rfft(limited[1])
    assert float(spectra[1][8100:].abs().max()) < 1e-3
    assert torch.allclose(spectra[1][:7900], spectra[0][:7900], atol=1e-2)


def test_crops_of_all_signals_are_of_the_same_place() -> None:
    torch.manual_seed(0)
    frames = [torch.arange(length) + 1000 * clip for clip, length in enumerate((30, 12, 90))]
    samples = [row.repeat_interleave(4) for row in frames]
    crops = Crops([len(row) for row in frames], 200, 8)
    found = crops(frames)
    assert found.shape == (200, 8)
    assert torch.equal(crops(samples, 4), found.repeat_interleave(4, 1))
    assert torch.equal(found[:, 1:], found[:, :-1] + 1)
    assert torch.equal(found[:, 0] // 1000, torch.tensor(crops.clips))
    # As likely everywhere: 83 of 111 places are in the longest clip.
    assert 130 < crops.clips.count(2) < 170
    assert {0, 1, 2} == set(crops.clips)
    assert int(found[found >= 2000].max()) > 2080
    assert Crops([30, 5], 3, 8).size == 5


def test_what_is_remembered_is_made_once_as_far_as_there_is_room() -> None:
    made: list[int] = []

    def make(number: int) -> Tensor:
        made.append(number)
        return torch.full((100,), float(number))

    memory = ClipMemory(0.0005)
    for clip in (1, 2, 1, 2):
        assert float(memory(str(clip), lambda clip=clip: make(clip))[0]) == clip
    assert made == [1, 2, 2]


def test_it_learns_and_its_export_sounds_the_same(place: Path, tmp_path: Path) -> None:
    settings = config(
        place,
        schedule__steps=30,
        schedule__warmup=0.0,
        watch__valid_steps=29,
        optimizer__learning_rates={"vocoder": 1e-2},
        optimizer__ema=0.0,
    )
    trainee = trainee_of(settings).eval()
    batch = batch_of(settings)
    with torch.no_grad():
        before = trainee.evaluate([batch])
    train(settings, VocoderStage(), tmp_path / "run", silent())
    curve = rows(tmp_path / "run")
    assert sum(row["stft"] for row in curve[-3:]) < 0.7 * sum(row["stft"] for row in curve[:3])
    after = rows(tmp_path / "run", "valid")[-1]
    assert after["mel"] < 0.8 * before["mel"]
    assert after["stft"] < 0.9 * before["stft"]
    assert {"pitch_cents", "voicing_error"} <= after.keys()

    folder = export_run(tmp_path / "run", tmp_path / "voice")
    exported = load_module(settings.preset, "vocoder", folder=folder / "vocoder")
    assert isinstance(exported, Vocoder)
    trained = trainee_of(settings, checkpoint.trained_weights(tmp_path / "run"))
    mel = torch.randn(1, 10, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(exported(mel), trained.vocoder(mel), atol=2e-3)
        begun = trainee_of(settings, initial_weights(settings.preset, folder))
        assert torch.allclose(begun.vocoder(mel), exported(mel), atol=1e-6)


class CutStage(VocoderStage):
    """The stage; it is told to stop while it computes its n-th batch."""

    def __init__(self, call: int) -> None:
        self.calls = call

    def build(
        self, config: TrainingConfig, weights: Weights, sources: Sequence[Source]
    ) -> VocoderTrainee:
        trainee = super().build(config, weights, sources)
        losses = trainee.losses

        def cut(batch: Batch) -> dict[str, Tensor]:
            self.calls -= 1
            if self.calls == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return losses(batch)

        trainee.losses = cut  # type: ignore[method-assign]
        return trainee


def test_an_adversarial_run_that_was_cut_goes_on_exactly(place: Path, tmp_path: Path) -> None:
    settings = config(place, "vocoder-adversarial")
    train(settings, VocoderStage(), tmp_path / "whole", silent())
    assert train(settings, CutStage(2), tmp_path / "cut", silent()).step == 2
    assert train(settings, VocoderStage(), tmp_path / "cut", silent(), resume="must").step == 4
    assert rows(tmp_path / "cut")[-1]["loss"] == rows(tmp_path / "whole")[-1]["loss"]
    states = [checkpoint.latest(tmp_path / name) for name in ("cut", "whole")]
    cut, whole = (checkpoint.read_weights(path) for path in states if path)
    assert cut.keys() == {"vocoder", "discriminators"}
    assert whole["discriminators"]["steps"].tolist() == [4.0] * 30
    for module, state in whole.items():
        for name, tensor in state.items():
            assert torch.equal(cut[module][name], tensor), name
    parts = rows(tmp_path / "whole")[0]
    total = parts["stft"] + 2 * parts["mel"] + 0.02 * parts["pitch"]
    total += parts["adversarial"] + 2 * parts["feature"]
    assert parts["loss"] == pytest.approx(total, rel=1e-4)


def test_discriminators_learn_apart_from_the_vocoder() -> None:
    torch.manual_seed(0)
    judges = LearningDiscriminators(1e-3)
    real = torch.from_numpy(voice(120, 0.2))[None]
    made = 0.1 * torch.randn(1, real.shape[1])
    made.requires_grad_(True)
    first = float(judges.learn(made, real))
    for _ in range(15):
        last = float(judges.learn(made, real))
    assert last < 0.7 * first
    assert made.grad is None
    before = {name: tensor.clone() for name, tensor in judges.state_dict().items()}
    judges.learn(made * torch.nan, real)
    judges(made)[0][-1].sum().backward()
    assert made.grad is not None
    assert bool(made.grad.any())
    assert not any(one.requires_grad for one in judges.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in judges.state_dict().items())


def test_the_source_follows_the_true_pitch_or_the_predicted_one(place: Path) -> None:
    found = []
    for share in (0.0, 1.0):
        settings = config(place, options__true_pitch=share)
        trainee, pitches = trainee_of(settings), []
        source = trainee.vocoder.source
        source.register_forward_pre_hook(lambda _, args, into=pitches: into.append(args[0]))
        trainee.losses(batch_of(settings))
        found.append(pitches[0])
    assert bool((found[0] < 50).all())
    assert 100 < float(found[1].median()) < 230


def test_lost_bands_have_no_gradient(place: Path) -> None:
    settings = config(place)
    trainee, batch = trainee_of(settings), batch_of(settings)
    narrow = tuple(replace(clip, custom={"bandwidth_hz": 8000.0}) for clip in batch.clips)
    made: list[Tensor] = []
    trainee.vocoder.register_forward_hook(lambda _, __, out: made.append(out))
    for clips, reach in ((batch.clips, False), (narrow, True)):
        torch.manual_seed(1)
        parts = trainee.losses(replace(batch, clips=clips))
        gradient = torch.autograd.grad(parts["stft"], made[-1])[0]
        power = torch.fft.rfft(gradient).abs().square().sum(0)
        above = power[int(0.7 * len(power)) :].sum() / power.sum()
        assert (float(above) < 1e-6) == reach
        trainee._bands._known.clear()


def test_it_reads_the_mel_that_a_flow_makes(place: Path, tmp_path: Path) -> None:
    preset = str(place / "tiny.toml")
    write_module(preset, "voice_encoder", random_module(preset, "voice_encoder", 1))
    write_spoken(preset, {"speech_tokenizer": random_module(preset, "speech_tokenizer", 1)})
    for name in ("train", "valid"):
        clips = read_set(place / "speech", name)
        tokens = {clip.id: np.arange(clip.seconds * 25).astype(np.int16) % 9 for clip in clips}
        shard = place / "speech" / f"{name}.0000"
        write_tokens(shard.parent, shard, tokenizer_sha256(preset), digest_of(shard), tokens)
    torch.manual_seed(3)
    flow = build_module(load_preset(preset), "flow_matching")
    speakers = SpeakerTable(["ann", "bob"], 8)
    tensors = {f"flow_matching.{name}": tensor for name, tensor in flow.state_dict().items()}
    tensors |= {f"speakers.{name}": tensor for name, tensor in speakers.state_dict().items()}
    run = tmp_path / "flow"
    checkpoint.write_checkpoint(run, "best", checkpoint.RunState(), tensors)
    settings = config(place, options__flow=str(run), watch__valid_steps=2, schedule__steps=2)
    trainee, batch = trainee_of(settings), batch_of(settings)
    assert trainee.kept().keys() == {"vocoder"}
    with torch.no_grad():
        mels = trainee._mels(batch)
        assert [len(mel) for mel in mels] == [length // 480 for length in batch.lengths.tolist()]
        first = torch.from_numpy(tokens[batch.clips[0].id].astype(np.int64))
        wanted = flow(first[None], speakers([batch.clips[0].speaker]))[0]
    assert torch.allclose(mels[0], wanted, atol=0.05)
    train(settings, VocoderStage(), tmp_path / "run", silent())
    assert len(rows(tmp_path / "run", "valid")) == 1
    with pytest.raises(TrainingError, match="is a run of vocoder: it is the --out folder of a run"):
        trainee_of(config(place, options__flow=str(tmp_path / "run")))
    with pytest.raises(TrainingError, match="holds no checkpoint"):
        trainee_of(config(place, options__flow=str(tmp_path)))


def test_what_it_cannot_use_is_refused(place: Path) -> None:
    for changes, said in (
        ({"optimizer__learning_rates": {"discriminators": 0.1}}, "vocoder trains: vocoder"),
        ({"data__sample_rate": 16_000}, "set data.sample_rate=24000"),
        ({"precision": "bfloat16"}, "precision is bfloat16, .*set precision=float32"),
        ({"options__crop_seconds": 0.1}, "crop_seconds is from 0.2 to 10"),
        ({"options__true_pitch": 1.5}, "true_pitch is from 0 to 1"),
        ({"options__stft_weight": -1.0}, "stft_weight is -1: it is 0 or more"),
        ({"options__stft_weight": 0.0, "options__mel_weight": 0.0}, "is more than 0"),
    ):
        with pytest.raises(TrainingError, match=said):
            VocoderStage().check(config(place, "vocoder-adversarial", **changes))
    weights = {"vocoder": {"conv_in.weight": torch.zeros(3)}}
    with pytest.raises(TrainingError, match="vocoder to begin with are of another preset"):
        trainee_of(config(place), weights)
