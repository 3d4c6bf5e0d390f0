"""Speech tokens of recordings: named shard by shard, and read only where they are theirs."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from minmo.cli.main import app
from minmo.training.data.tokens import Named, TokenNamer, name_tokens
from minmo.training.errors import TrainingError
from minmo.training.shar import read_set, read_shard
from minmo.training.speech_tokens import SpeechTokens, Tokens, tokens_file
from minmo.training.whole_clips import WholeClipEncoder
from minmo.weights import WeightsError
from minmo.weights.modules import load_module, random_module, write_module
from minmo.weights.spoken import TOKENIZER, write_spoken
from tests.unit.published_checkpoints import preset as tiny
from tests.unit.tiny_presets import write_preset
from tests.unit.tiny_training import write_shard

Sound = tuple[np.ndarray, int]


@pytest.fixture
def preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny preset with a voice encoder and a speech tokenizer."""
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    path = str(write_preset(tmp_path))
    write_module(path, "voice_encoder", random_module(path, "voice_encoder", 1))
    install(path, 1)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "speech"
    write_shard(folder, "train.0000", 3)
    write_shard(folder, "train.0001", 2)
    write_shard(folder, "valid.0000", 2)
    return folder


def install(path: str, seed: int) -> None:
    write_spoken(path, {TOKENIZER: random_module(path, TOKENIZER, seed)})


def write_sounds(folder: Path, sounds: Mapping[str, Sound]) -> None:
    """A shard of sounds at rates of their own."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "recording.tar", "w") as tar:
        for name, (samples, rate) in sounds.items():
            content = io.BytesIO()
            soundfile.write(content, samples, rate, format="FLAC", subtype="PCM_16")
            member = tarfile.TarInfo(f"{name}.flac")
            member.size = len(content.getvalue())
            tar.addfile(member, io.BytesIO(content.getvalue()))
    said = {"text": "a", "speaker": "s"}
    with gzip.open(folder / "cuts.jsonl.gz", "wt") as lines:
        for name, (samples, rate) in sounds.items():
            cut = {"id": name, "duration": len(samples) / rate, "supervisions": [said]}
            lines.write(json.dumps(cut) + "\n")


def named(preset: str, data: Path, sets: tuple[str, ...] = ("train", "valid")) -> SpeechTokens:
    name_tokens([data], sets, preset, 2)
    return SpeechTokens.open([data], sets, preset)


def test_every_clip_has_25_tokens_a_second_of_its_own_audio(preset: str, data: Path) -> None:
    tokens = named(preset, data)
    clips = [clip for name in ("train", "valid") for clip in read_set(data, name)]
    assert set(tokens) == {clip.id for clip in clips}
    assert len(tokens) == 7
    encoder = load_module(preset, "voice_encoder")
    tokenizer = load_module(preset, TOKENIZER)
    for clip in clips:
        samples, _ = soundfile.read(io.BytesIO(audio_of(clip)), dtype="float32")
        with torch.inference_mode():
            frames = encoder(torch.from_numpy(samples)[None])
            wanted = tokenizer(frames)[0]
        found = tokens[clip.id]
        assert found.dtype == np.int16
        assert found.tolist() == wanted.tolist()
        assert len(found) == frames.shape[1] // 5 * 3
        assert 0 <= clip.seconds * 25 - len(found) <= 6


def audio_of(clip: object) -> bytes:
    with Path(clip.archive).open("rb") as file:  # type: ignore[attr-defined]
        file.seek(clip.offset)  # type: ignore[attr-defined]
        return file.read(clip.size)  # type: ignore[attr-defined]


def test_clips_of_any_rate_and_stereo_have_the_tokens_of_what_is_heard(
    preset: str, tmp_path: Path
) -> None:
    tone = 0.3 * np.sin(np.arange(24_000) * 0.07).astype(np.float32)
    sounds = {
        "mono": (tone, 24_000),
        "stereo": (np.stack((tone, tone), axis=1), 24_000),
        "silent": (np.zeros(16_000, dtype=np.float32), 16_000),
        "short": (tone[:200], 16_000),
    }
    write_sounds(tmp_path / "speech" / "train.0000", sounds)
    tokens = named(preset, tmp_path / "speech", ("train",))
    assert len(tokens["mono"]) == 24
    assert tokens["mono"].tolist() == tokens["stereo"].tolist()
    assert len(tokens["silent"]) == 24
    assert len(tokens["short"]) == 0


def test_a_shard_is_left_as_it_was(preset: str, data: Path) -> None:
    before = sorted(path.name for path in (data / "train.0000").iterdir())
    named(preset, data)
    assert sorted(path.name for path in (data / "train.0000").iterdir()) == before
    assert len(read_set(data, "train")) == 5


def test_only_shards_without_tokens_are_named(preset: str, data: Path) -> None:
    name_tokens([data], ["train"], preset, 1)
    now = name_tokens([data], ["train", "valid"], preset, 1)
    assert (now.shards, now.known, now.clips) == (1, 2, 2)
    assert now.seconds == pytest.approx(1.125)
    assert name_tokens([data], ["train", "valid"], preset, 1) == Named(known=3)


def test_whole_shards_stay_when_it_is_stopped(
    preset: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [], TokenNamer.tokens_of

    def stopped(namer: TokenNamer, samples: torch.Tensor) -> Tokens:
        calls.append(len(samples))
        if len(calls) > 4:
            raise KeyboardInterrupt
        return real(namer, samples)

    with monkeypatch.context() as patch:
        patch.setattr(TokenNamer, "tokens_of", stopped)
        with pytest.raises(KeyboardInterrupt):
            name_tokens([data], ["train", "valid"], preset, 1)
    assert [path.name for path in data.glob(".tokens/*/*")] == ["train.0000.npz"]
    totals = []
    left = name_tokens([data], ["train", "valid"], preset, 1, lambda now, n: totals.append(n))
    assert (left.known, left.shards) == (1, 2)
    assert set(totals) == {4}
    assert len(SpeechTokens.open([data], ["train", "valid"], preset)) == 7


def test_tokens_that_are_missing_or_of_another_tokenizer_name_the_command(
    preset: str, data: Path
) -> None:
    command = f"run `minmo data tokens {data} --sets train --preset {preset}`"
    with pytest.raises(TrainingError, match=r"train\.0000 have no speech tokens yet") as caught:
        SpeechTokens.open([data], ["train"], preset)
    assert command in str(caught.value)
    first = named(preset, data, ("train",)).tokenizer_sha256
    install(preset, 2)
    message = rf"of another tokenizer \({first[:12]}\) than the one that is installed"
    with pytest.raises(TrainingError, match=message) as caught:
        SpeechTokens.open([data], ["train"], preset)
    assert command in str(caught.value)
    second = named(preset, data, ("train",))
    assert second.tokenizer_sha256 != first
    install(preset, 1)
    assert SpeechTokens.open([data], ["train"], preset).tokenizer_sha256 == first


def test_tokens_of_a_shard_that_was_made_again_are_refused(preset: str, data: Path) -> None:
    sha256 = named(preset, data, ("train",)).tokenizer_sha256
    shutil.rmtree(data / "train.0001")
    write_shard(data, "train.0001", 3)
    with pytest.raises(TrainingError, match="are damaged, or of other clips: run `minmo data tok"):
        SpeechTokens.open([data], ["train"], preset)
    assert name_tokens([data], ["train"], preset, 1).shards == 1
    path = tokens_file(data, "train.0000", sha256)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingError, match="are damaged, or of other clips"):
        SpeechTokens.open([data], ["train"], preset)
    assert len(named(preset, data, ("train",))) == 6


def test_clips_of_one_name_are_refused_unless_they_say_the_same(
    preset: str, data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(data, other)
    name_tokens([data, other], ["train"], preset, 1)
    assert len(SpeechTokens.open([data, other], ["train"], preset)) == 5
    shutil.rmtree(other / "train.0000")
    write_shard(other, "train.0000", 3, 0.9)
    name_tokens([other], ["train"], preset, 1)
    with pytest.raises(TrainingError, match=r"two clips .* are called train-0000-0000"):
        SpeechTokens.open([data, other], ["train"], preset)


def test_without_a_tokenizer_it_says_what_trains_one(
    preset: str, data: Path, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "home/weights/tiny/voice")
    for ask in (
        lambda: name_tokens([data], ["train"], preset, 1),
        lambda: SpeechTokens.open([data], ["train"], preset),
    ):
        with pytest.raises(TrainingError, match=r"train one with `minmo train speech-tokenizer"):
            ask()
    assert not (data / ".tokens").exists()


def test_another_voice_encoder_than_the_tokenizers_is_refused(preset: str, data: Path) -> None:
    write_module(preset, "voice_encoder", random_module(preset, "voice_encoder", 7))
    with pytest.raises(WeightsError, match="trained against another voice_encoder"):
        name_tokens([data], ["train"], preset, 1)


def test_a_clip_that_cannot_be_read_is_named_and_nothing_of_its_shard_is_written(
    preset: str, data: Path
) -> None:
    clip = next(read_shard(data / "train.0001"))
    with Path(clip.archive).open("r+b") as file:
        file.seek(clip.offset)
        file.write(b"\0" * clip.size)
    with pytest.raises(TrainingError, match=f"clip {clip.id} in .* cannot be read"):
        name_tokens([data], ["train"], preset, 1)
    assert not list(data.glob(".tokens/*/train.0001*"))


def test_more_tokens_than_can_be_kept_are_refused() -> None:
    sizes = {"speech_tokenizer": {"levels": 3, "dimensions": 10}}
    many = {name: {"speech_tokens": 3**10} for name in ("voice_token_lm", "flow_matching")}
    preset = tiny(**sizes, **many)
    encoder = WholeClipEncoder(random_module(preset, "voice_encoder"))  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="59049 speech tokens; at most 32768"):
        TokenNamer(encoder, random_module(preset, TOKENIZER))  # type: ignore[arg-type]


def test_the_command_names_them(preset: str, data: Path) -> None:
    arguments = ["data", "tokens", str(data), "--preset", preset, "--workers", "1"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    told = json.loads(done.stdout)
    assert (told["shards"], told["clips"], told["known"]) == (3, 7, 0)
    assert told["tokens"] == sum(
        map(len, SpeechTokens.open([data], ["train"], preset).values())
    ) + (sum(map(len, SpeechTokens.open([data], ["valid"], preset).values())))
    again = CliRunner().invoke(app, arguments)
    assert "in 0 shards" in again.stdout
    assert "3 shards had theirs" in again.stdout
    wrong = CliRunner().invoke(app, [*arguments, "--sets", "tran"])
    assert "no clips of the set 'tran'" in str(wrong.exception)
    empty = CliRunner().invoke(app, [*arguments, "--sets", ","])
    assert "--sets names no set" in str(empty.exception)
