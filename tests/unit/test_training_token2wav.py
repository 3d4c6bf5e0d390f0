"""Token2wav on a tiny preset: what it learns from, that it learns, and what it exports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from minmo.model.features import VocoderMel
from minmo.model.flow_matching import FlowMatching
from minmo.model.flow_matching_loss import flow_matching_loss
from minmo.presets import build_module, load_preset
from minmo.training import checkpoint
from minmo.training.bandwidth import known_bins
from minmo.training.batches import Batch, Source, read_sources, read_valid, valid_batches
from minmo.training.config import TrainingConfig, load_config, with_changes
from minmo.training.curves import read_curve
from minmo.training.errors import TrainingError
from minmo.training.exporting import export_run
from minmo.training.mel_data import clip_mels, whole_tokens
from minmo.training.shar import read_set
from minmo.training.speaker_table import SpeakerTable
from minmo.training.speech_tokens import digest_of, tokenizer_sha256, write_tokens
from minmo.training.token2wav import Token2WavStage, Token2WavTrainee
from minmo.training.trainer import train
from minmo.weights.modules import load_module, random_module, write_module
from minmo.weights.speaker_file import load_speaker
from minmo.weights.spoken import write_spoken
from tests.unit.tiny_presets import write_preset
from tests.unit.tiny_recordings import write_recordings
from tests.unit.tiny_training import silent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a speech tokenizer, and clips whose tokens it is said to have named."""
    folder = tmp_path_factory.mktemp("token2wav")
    preset = str(write_preset(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINMO_HOME", str(folder / "home"))
        write_module(preset, "voice_encoder", random_module(preset, "voice_encoder", 1))
        write_spoken(preset, {"speech_tokenizer": random_module(preset, "speech_tokenizer", 1)})
        sha256 = tokenizer_sha256(preset)
    root = folder / "speech"
    for name, count in (("train", 8), ("valid", 4)):
        shard = write_recordings(root, f"{name}.0000", count)
        tokens = {
            # A token more than the clip's sound has, as rounding may give.
            clip.id: np.arange(clip.seconds * 25 + 1).astype(np.int16) % (3 if number % 2 else 9)
            for number, clip in enumerate(read_set(root, name))
        }
        write_tokens(root, shard, sha256, digest_of(shard), tokens)
    return folder


@pytest.fixture(autouse=True)
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINMO_HOME", str(place / "home"))


def config(place: Path, **changes: object) -> TrainingConfig:
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
        "watch.valid_steps": 100,
    }
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return with_changes(load_config("token2wav"), given | changes)


def trainee_of(settings: TrainingConfig) -> Token2WavTrainee:
    torch.manual_seed(0)
    return Token2WavStage().build(settings, {}, read_sources(settings.data))


def batches_of(settings: TrainingConfig) -> list[Batch]:
    return list(valid_batches(read_valid(settings.data), settings.data, 0))


def test_it_learns_and_its_export_speaks_for_whom_most_is_heard_of(
    place: Path, tmp_path: Path
) -> None:
    settings = config(
        place,
        schedule__steps=40,
        schedule__warmup=0.0,
        watch__valid_steps=39,
        optimizer__learning_rates={"flow_matching": 1e-2, "speakers": 1e-2},
        optimizer__ema=0.0,
    )
    train(settings, Token2WavStage(), tmp_path / "run", silent())
    curve = read_curve(tmp_path / "run" / "curves" / "train.csv")
    assert sum(row["loss"] for row in curve[-4:]) < 0.6 * sum(row["loss"] for row in curve[:4])
    measured = read_curve(tmp_path / "run" / "curves" / "valid.csv")[-1]
    assert measured["loss"] < curve[0]["loss"]
    assert 0 < measured["mel"] < 12

    folder = export_run(tmp_path / "run", tmp_path / "voice")
    kept = checkpoint.trained_weights(tmp_path / "run")
    exported = load_module(settings.preset, "flow_matching", folder=folder / "flow_matching")
    name = "token_embedding.weight"
    assert torch.equal(exported.state_dict()[name], kept["flow_matching"][name].half().float())
    speaker = load_speaker(folder / "speakers" / "default.safetensors")
    assert torch.equal(speaker.embedding, kept["speakers"]["embeddings"][1])
    clips = [clip for clip in read_set(place / "speech", "train") if clip.speaker == "bob"]
    said = sum(len(clip.text) for clip in clips) / sum(clip.seconds for clip in clips)
    assert speaker.characters_per_second == pytest.approx(said)
    with safe_open(folder / "speakers" / "default.safetensors", "pt") as file:
        assert file.metadata()["name"] == "default"

    other = replace(settings, options={"speaker": "ann"})
    Token2WavStage().export(other, kept, tmp_path / "ann")
    speaker = load_speaker(tmp_path / "ann" / "speakers" / "default.safetensors")
    assert torch.equal(speaker.embedding, kept["speakers"]["embeddings"][0])
    with pytest.raises(TrainingError, match=r"'eve'; learned from were: ann, bob"):
        Token2WavStage().export(replace(settings, options={"speaker": "eve"}), kept, tmp_path)


def test_measurements_are_the_same_every_time(place: Path) -> None:
    settings = config(place)
    trainee = trainee_of(settings).eval()
    with torch.no_grad():
        figures = trainee.evaluate(batches_of(settings))
        torch.manual_seed(99)
        assert trainee.evaluate(batches_of(settings)) == figures
        fewer = replace(settings, data=replace(settings.data, seconds=0.9))
        assert len(batches_of(fewer)) > len(batches_of(settings))
        # The solver's noise is the product's; the loss's is drawn batch by batch.
        assert trainee.evaluate(batches_of(fewer))["mel"] == pytest.approx(figures["mel"], rel=1e-4)


def test_a_clip_is_learned_as_the_product_hears_it(place: Path) -> None:
    settings = config(place)
    trainee, batch = trainee_of(settings), batches_of(settings)[0]
    examples = trainee._examples(batch)
    assert len(set(batch.lengths.tolist())) == 2
    for number, (clip, length) in enumerate(zip(batch.clips, batch.lengths.tolist(), strict=True)):
        count = int(examples.lengths[number])
        assert count == length // 960 == len(trainee._tokens[clip.id]) - 1
        alone = VocoderMel()(batch.samples[number : number + 1, : count * 960])[0]
        assert torch.equal(examples.mel[number, : 2 * count], alone)
        assert not examples.mel[number, 2 * count :].any()
        wanted = torch.from_numpy(trainee._tokens[clip.id][:count].astype(np.int64))
        assert torch.equal(examples.tokens[number, :count], wanted)


def test_mel_does_not_suffer_from_autocast(place: Path) -> None:
    settings = config(place)
    batch = batches_of(settings)[0]
    counts = [length // 480 for length in batch.lengths.tolist()]
    wanted = clip_mels(VocoderMel(), batch, counts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(clip_mels(VocoderMel(), batch, counts)[0], wanted[0])


def test_fewer_tokens_than_sound_are_fewer_frames(place: Path) -> None:
    settings = config(place)
    batch = batches_of(settings)[0]
    tokens = {clip.id: np.array([1, 2, 3], dtype=np.int16) for clip in batch.clips}
    assert [row.tolist() for row in whole_tokens(batch, tokens)] == [[1, 2, 3]] * len(batch.clips)


def test_speakers_that_come_later_find_the_others_as_they_were(place: Path) -> None:
    clips = read_set(place / "speech", "train")
    torch.manual_seed(0)
    base = SpeakerTable.for_clips(clips, None, 8)
    own = [replace(clip, speaker="me", text="six by") for clip in clips]
    table = SpeakerTable.for_clips(own, base.state_dict(), 8)
    assert torch.equal(table.embeddings[:2], base.embeddings)
    assert torch.equal(table(["bob", "ann", "me"])[:2], base(["bob", "ann"]))
    assert float(table(["me"]).detach().norm()) == pytest.approx(1)
    # The voice that is trained now is the one that is exported.
    assert torch.equal(table.speaker().embedding, table.embeddings.detach()[2])
    again = SpeakerTable.from_state(table.state_dict(), 8)
    assert torch.equal(again.speaker().embedding, table.speaker().embedding)
    nobody = base(["nobody"])[0]
    assert torch.allclose(nobody, base.embeddings.mean(0))
    with pytest.raises(TrainingError, match="weights of speakers to begin with are of another"):
        SpeakerTable.for_clips(own, base.state_dict(), 9)


def test_bins_that_a_recording_has_lost_do_not_count(place: Path) -> None:
    preset = load_preset(str(place / "tiny.toml"))
    torch.manual_seed(0)
    flow = build_module(preset, "flow_matching")
    assert isinstance(flow, FlowMatching)
    tokens, lengths = torch.randint(9, (2, 6)), torch.tensor([6, 4])
    mel, speakers = torch.randn(2, 12, 80), torch.randn(2, 8)
    bins = known_bins(VocoderMel(), torch.tensor([12_000.0, 4000.0]))
    assert bool(bins[0].all())
    assert 40 < int(bins[1].sum()) < 80
    assert bool(bins[1, :40].all())

    @torch.no_grad()
    def loss(bins: torch.Tensor | None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return flow_matching_loss(flow, tokens, mel, speakers, lengths, generator, bins=bins)

    frames = torch.tensor([[12.0], [8.0]])
    known, lost = ((frames * some).sum() for some in (bins, ~bins))
    together = (loss(bins) * known + loss(~bins) * lost) / (known + lost)
    assert float(together) == pytest.approx(float(loss(None)), rel=1e-5)
    assert float(loss(bins)) != pytest.approx(float(loss(None)), rel=1e-3)


def test_a_clips_own_band_is_kept_to(place: Path) -> None:
    settings = config(place)
    batch = batches_of(settings)[0]
    narrow = tuple(replace(clip, custom={"bandwidth_hz": 4000.0}) for clip in batch.clips)
    trainee = trainee_of(settings)
    assert not bool(trainee._examples(replace(batch, clips=narrow)).bins[:, -1].any())
    wide = trainee_of(config(place, options__band_limits=False))
    assert bool(wide._examples(replace(batch, clips=narrow)).bins.all())


def test_what_it_cannot_use_is_refused(place: Path, tmp_path: Path) -> None:
    stage = Token2WavStage()
    for changes, said in (
        ({"optimizer__learning_rates": {"vocoder": 0.1}}, "trains: flow_matching, speakers"),
        ({"data__sample_rate": 16_000}, "set data.sample_rate=24000"),
        ({"data__silence": [0.0, 0.5]}, r"set data.silence=\[0, 0\]"),
        ({"data__audio": False}, "set data.audio=true"),
        ({"data__shortest": 0.1}, "set data.shortest=0.2 or more"),
        ({"options__solve_every": 0}, "solve_every is 0"),
        ({"options__voice": "x"}, "no key 'voice'"),
    ):
        with pytest.raises(TrainingError, match=said):
            stage.check(config(place, **changes))
    settings = config(place)
    weights = {"flow_matching": {"encoder.norm.weight": torch.zeros(3)}}
    with pytest.raises(TrainingError, match="flow_matching to begin with are of another preset"):
        stage.build(settings, weights, read_sources(settings.data))
    write_recordings(tmp_path / "speech", "train.0000", 2)
    untold = config(place, data__folders={str(tmp_path / "speech"): 1.0}, watch__valid_steps=None)
    with pytest.raises(TrainingError, match="minmo data tokens"):
        stage.build(untold, {}, [Source(read_set(tmp_path / "speech", "train"), 1.0)])
