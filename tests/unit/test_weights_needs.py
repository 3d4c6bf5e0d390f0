"""What a preset lacks is said at once, with the commands that bring it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minmo.cli import reach
from minmo.presets import build_module, load_preset
from minmo.rpc.process import StartError
from minmo.settings import VoiceDecoderSettings
from minmo.weights import WeightsError
from minmo.weights.importing import import_weights
from minmo.weights.modules import write_module
from minmo.weights.needs import check_imported, missing_for_voice
from minmo.weights.spk2info import import_speakers
from services.voice_decoder.voices import load_voices
from tests.unit import published_checkpoints as made
from tests.unit.tiny_presets import write_preset

ROOT = Path(__file__).parents[2]


@pytest.fixture
def preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    tables = made.WHISPER | made.QWEN2 | made.COSYVOICE
    tables["voice_token_lm"] = tables["voice_token_lm"] | {"max_context": 512}
    # The made-up tokenizer has nothing to spell.
    tables["output_projector"] = {"spelling_width": 0}
    return str(write_preset(tmp_path, **tables))


def bring_voice(preset: str, folder: Path, speakers: dict[str, int]) -> None:
    sizes = load_preset(preset)
    made.cosyvoice(folder / "cosyvoice", sizes)
    import_weights(folder / "cosyvoice", sizes)
    made.spk2info(folder / "spk2info.pt", sizes, speakers)
    import_speakers(folder / "spk2info.pt", sizes)


def test_one_message_names_every_import_that_is_missing(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minmo.weights.ensure", lambda *_: pytest.fail("it fetched something"))
    with pytest.raises(WeightsError) as caught:
        reach.ensure_weights(preset, quiet=True)
    lines = [line for line in str(caught.value).splitlines() if "minmo weights import" in line]
    assert all(f"--preset {preset}" in line for line in lines)
    for line, what in zip(lines, ("Whisper", "Qwen2.5", "CosyVoice 2", "speakers"), strict=True):
        assert what in line
    made.whisper(tmp_path / "whisper")
    import_weights(tmp_path / "whisper", load_preset(preset))
    with pytest.raises(WeightsError, match="has no weights of llm in"):
        check_imported(preset)
    made.qwen2(tmp_path / "qwen")
    import_weights(tmp_path / "qwen", load_preset(preset))
    check_imported(preset)


def test_a_recognised_encoder_alone_is_not_enough(preset: str, tmp_path: Path) -> None:
    made.whisper(tmp_path / "whisper")
    made.qwen2(tmp_path / "qwen")
    import_weights(tmp_path / "whisper", load_preset(preset), module="voice_encoder")
    import_weights(tmp_path / "qwen", load_preset(preset))
    with pytest.raises(WeightsError, match="has no weights of recognizer in"):
        check_imported(preset)


def test_sense_voice_needs_no_recogniser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    tables = made.SENSE_VOICE | made.QWEN2 | {"recognizer": None}
    preset = str(write_preset(tmp_path, **tables))
    with pytest.raises(WeightsError, match="has no weights of voice_encoder, llm in") as caught:
        check_imported(preset)
    assert "FunAudioLLM/SenseVoiceSmall" in str(caught.value)


def test_the_network_speaks_once_its_weights_and_a_speaker_are_there(
    preset: str, tmp_path: Path
) -> None:
    everything = ["voice_token_lm", "flow_matching", "vocoder", "speakers"]
    assert missing_for_voice(preset) == everything
    bring_voice(preset, tmp_path, {"Zoe": 15, "Ada": 15, "default": 15})
    assert missing_for_voice(preset) == []
    voices = load_voices(VoiceDecoderSettings(preset=preset, context=256))
    assert list(voices.by_name) == ["default", "Ada", "Zoe"]
    voices.close()
    (tmp_path / "home/weights/tiny/vocoder/model.safetensors").unlink()
    assert missing_for_voice(preset) == ["vocoder"]
    voices = load_voices(VoiceDecoderSettings(preset=preset))
    assert list(voices.by_name) == ["pico"]
    voices.close()


def test_who_asks_for_the_network_is_told_what_it_lacks(preset: str, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"spk2info\.pt"):
        load_voices(VoiceDecoderSettings(preset=preset, voice="neural"))
    bring_voice(preset, tmp_path, {"Ada": 15})
    folder = tmp_path / "home/weights/tiny/speakers"
    (folder / "Eva.safetensors").write_bytes((folder / "Ada.safetensors").read_bytes())
    with pytest.raises(StartError, match="second speaker called 'Ada'"):
        load_voices(VoiceDecoderSettings(preset=preset))


def test_a_voice_that_reads_hidden_states_waits_for_who_sends_them(
    preset: str, tmp_path: Path
) -> None:
    bring_voice(preset, tmp_path, {"Ada": 15})
    sizes = load_preset(preset)
    shutil.rmtree(tmp_path / "home/weights/tiny/voice_token_lm")
    write_module(sizes, "voice_token_lm", build_module(sizes, "voice_token_lm"))
    assert missing_for_voice(preset) == ["output_projector"]
    write_module(sizes, "output_projector", build_module(sizes, "output_projector"))
    made.qwen2(tmp_path / "qwen")
    import_weights(tmp_path / "qwen", sizes)
    names = []
    for sent in (True, False):
        settings = VoiceDecoderSettings(preset=preset, context=256, hidden_states=sent)
        voices = load_voices(settings)
        names += voices.by_name
        voices.close()
    assert names == ["Ada", "pico"]


def test_a_prompt_whose_text_the_voice_cannot_read_is_refused(preset: str, tmp_path: Path) -> None:
    sizes = load_preset(preset)
    made.cosyvoice(tmp_path / "cosyvoice", sizes, vocabulary=3)
    import_weights(tmp_path / "cosyvoice", sizes)
    made.spk2info(tmp_path / "spk2info.pt", sizes, {"Ada": 15})
    import_speakers(tmp_path / "spk2info.pt", sizes)
    with pytest.raises(StartError, match=r"text token .* 0 to 2"):
        load_voices(VoiceDecoderSettings(preset=preset, context=256))


def test_pico_speaks_for_mini_without_pytorch(tmp_path: Path) -> None:
    code = (
        "import sys; from minmo.settings import VoiceDecoderSettings; "
        "from services.voice_decoder.voices import load_voices; "
        "voices = load_voices(VoiceDecoderSettings()); voices.close(); "
        "print(*voices.by_name, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"MINMO_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "pico False"
