"""The voice set: written module by module, found as a whole, with what it was trained with."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from minmo.model.speaker import Speaker, random_speaker
from minmo.presets import Preset, load_preset
from minmo.settings import VoiceDecoderSettings
from minmo.weights import WeightsError, spoken, weights_folder
from minmo.weights.errors import AbsentWeightsError
from minmo.weights.modules import load_module, module_sha256, random_module, write_module
from minmo.weights.needs import missing_for_voice, voice_reads_text
from minmo.weights.prepare import states
from minmo.weights.speaker_file import load_speaker
from minmo.weights.speakers import speaker_files
from minmo.weights.spoken import (
    SPOKEN_MODULES,
    TOKENIZER,
    check_spoken,
    tokenizer_folder,
    voice_set,
    write_spoken,
)
from services.voice_decoder.voices import load_voices
from tests.unit.tiny_presets import write_preset

NOTHING = ["voice_token_lm", "flow_matching", "vocoder", "speakers"]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny preset whose pretrained modules are here."""
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(spoken, "packaged_voice", lambda name: tmp_path / "packaged" / name)
    sizes = {"voice_token_lm": {"max_context": 512}, "output_projector": {"spelling_width": 0}}
    preset = str(write_preset(tmp_path, **sizes))
    for name in ("voice_encoder", "llm"):
        write_module(preset, name, random_module(preset, name))
    return preset


@pytest.fixture
def preset(path: str) -> Preset:
    return load_preset(path)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home/weights/tiny"


@pytest.fixture
def packaged(tmp_path: Path) -> Path:
    return tmp_path / "packaged/tiny"


def modules(preset: Preset, *names: str, seed: int = 1) -> dict[str, nn.Module]:
    return {name: random_module(preset, name, seed) for name in names}


def somebody(preset: Preset, name: str = "default", seed: int = 0) -> tuple[Speaker]:
    return (random_speaker(preset.flow_matching.speaker_width, seed, name),)


def write_whole(preset: Preset, folder: Path | None = None, seed: int = 1) -> Path:
    made = modules(preset, TOKENIZER, *SPOKEN_MODULES, seed=seed)
    return write_spoken(preset, made, folder, somebody(preset))


def sha256(preset: Preset, module: str, root: Path) -> str:
    return module_sha256(preset, module, root / module)


def test_without_a_set_everything_is_as_it_was(path: str, preset: Preset) -> None:
    assert voice_set(path) is None
    assert missing_for_voice(path) == NOTHING
    assert speaker_files("tiny") == []
    check_spoken(preset)
    for name in (*SPOKEN_MODULES, TOKENIZER):
        with pytest.raises(AbsentWeightsError, match=f"the weights of {name} are not in"):
            weights_folder(path, name)


def test_stages_write_their_modules_one_after_the_other_and_then_it_speaks(
    path: str, preset: Preset, home: Path
) -> None:
    root = home / "voice"
    write_spoken(preset, modules(preset, TOKENIZER))
    assert missing_for_voice(path) == NOTHING
    assert weights_folder(path, TOKENIZER) == root / TOKENIZER
    write_spoken(preset, modules(preset, "flow_matching"), speakers=somebody(preset))
    write_spoken(preset, modules(preset, "vocoder"))
    assert voice_set(path) is None
    assert missing_for_voice(path) == ["output_projector", "voice_token_lm"]
    tokenizer = sha256(preset, TOKENIZER, root)
    write_spoken(preset, modules(preset, "output_projector", "voice_token_lm"))
    assert sha256(preset, TOKENIZER, root) == tokenizer
    assert voice_set(path) == root
    assert missing_for_voice(path) == []
    assert not voice_reads_text(path)
    assert not list(home.glob(".*"))
    for name in SPOKEN_MODULES:
        tensors = load_file(root / name / "model.safetensors").values()
        assert {one.dtype for one in tensors if one.is_floating_point()} == {torch.float16}
        loaded = load_module(path, name).state_dict()
        wanted = random_module(preset, name, 1).state_dict()
        # Weights that are packed for inference are no tensors of the loaded module.
        for key, value in loaded.items():
            torch.testing.assert_close(value, wanted[key], atol=2e-3, rtol=2e-3)


def test_the_voice_decoder_speaks_with_the_set_where_hidden_states_are_sent(
    path: str, preset: Preset
) -> None:
    write_whole(preset)
    names = []
    for sent in (True, False):
        settings = VoiceDecoderSettings(preset=path, context=256, hidden_states=sent)
        voices = load_voices(settings)
        names += voices.by_name
        voices.close()
    assert names == ["default", "pico"]


def test_what_each_was_trained_against_is_recorded(preset: Preset) -> None:
    from minmo.weights.modules import trained_against

    root = write_whole(preset)
    tokenizer, llm = sha256(preset, TOKENIZER, root), module_sha256(preset, "llm")
    recorded = {name: trained_against(root / name) for name in (*SPOKEN_MODULES, TOKENIZER)}
    reads = {"llm": llm, TOKENIZER: tokenizer}
    assert recorded == {
        TOKENIZER: {"voice_encoder": module_sha256(preset, "voice_encoder")},
        "flow_matching": {TOKENIZER: tokenizer},
        "voice_token_lm": reads,
        "output_projector": reads,
        "vocoder": {},
    }


@pytest.mark.parametrize("changed", ["llm", "voice_encoder", TOKENIZER])
def test_another_module_than_it_was_trained_against_is_refused(
    path: str, preset: Preset, changed: str
) -> None:
    write_whole(preset)
    check_spoken(path)
    if changed == TOKENIZER:
        write_spoken(preset, modules(preset, TOKENIZER, seed=5))
    else:
        write_module(preset, changed, random_module(preset, changed, 5))
    needy = {"voice_encoder": TOKENIZER}.get(changed, "voice_token_lm")
    with pytest.raises(WeightsError, match=f"{needy} in .* was trained against another {changed}"):
        load_module(path, needy)
    if changed != "voice_encoder":
        with pytest.raises(WeightsError, match=f"against another {changed}"):
            load_voices(VoiceDecoderSettings(preset=path, context=256))


def test_a_set_without_its_tokenizer_speaks_if_its_modules_agree_about_it(
    path: str, preset: Preset, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_whole(preset)
    shutil.rmtree(root / TOKENIZER)
    check_spoken(path)
    with caplog.at_level(logging.WARNING):
        load_module(path, "flow_matching")
    assert not caplog.records
    other = random_module(preset, "flow_matching", 3)
    against = {TOKENIZER: "0" * 64}
    write_module(
        preset, "flow_matching", other, folder=root / "flow_matching", trained_against=against
    )
    with pytest.raises(WeightsError, match=r"flow_matching was trained against the speech_tokeniz"):
        check_spoken(path)


def test_ones_own_set_comes_first_as_soon_as_it_can_speak(
    path: str, preset: Preset, home: Path, packaged: Path
) -> None:
    write_whole(preset, packaged)
    assert voice_set(path) == tokenizer_folder(path).parent == packaged
    # A new tokenizer begins another voice: nothing that MinMo brings fits it.
    write_spoken(preset, modules(preset, TOKENIZER, seed=2))
    own = home / "voice"
    assert {entry.name for entry in own.iterdir()} == {TOKENIZER}
    assert tokenizer_folder(path) == own / TOKENIZER
    assert voice_set(path) == packaged
    assert missing_for_voice(path) == []
    check_spoken(path)
    write_spoken(preset, modules(preset, *SPOKEN_MODULES, seed=2), speakers=somebody(preset))
    assert voice_set(path) == own
    check_spoken(path)


def test_a_module_that_is_replaced_leaves_the_rest_of_what_minmo_brings(
    path: str, preset: Preset, home: Path, packaged: Path
) -> None:
    write_whole(preset, packaged)
    before = sha256(preset, "vocoder", packaged)
    write_spoken(preset, modules(preset, "vocoder", seed=4))
    assert voice_set(path) == home / "voice"
    assert sha256(preset, "flow_matching", home / "voice") == sha256(
        preset, "flow_matching", packaged
    )
    assert (
        sha256(preset, "vocoder", packaged) == before != sha256(preset, "vocoder", home / "voice")
    )
    check_spoken(path)


def test_a_set_changes_as_a_whole_or_not_at_all(path: str, preset: Preset, home: Path) -> None:
    root = write_whole(preset)
    before = {name: sha256(preset, name, root) for name in SPOKEN_MODULES}
    broken = modules(preset, "flow_matching", "vocoder", seed=2)
    next(broken["vocoder"].parameters()).data.view(-1)[0] = torch.nan
    with pytest.raises(WeightsError, match="holds NaN or infinity"):
        write_spoken(preset, broken, speakers=somebody(preset, "Eva"))
    assert {name: sha256(preset, name, root) for name in SPOKEN_MODULES} == before
    assert [load_speaker(file).name for file in speaker_files("tiny")] == ["default"]
    assert not list(home.glob(".*"))


def test_speakers_come_and_go_with_the_flow_that_learned_them(preset: Preset, home: Path) -> None:
    write_whole(preset)
    given = (*somebody(preset, "Zoe", 3), *somebody(preset, seed=4))
    notes = {"licence": "CC0-1.0", "source": "recordings"}
    write_spoken(preset, modules(preset, "flow_matching"), speakers=given, notes=notes)
    files = speaker_files("tiny")
    assert [file.stem for file in files] == ["default", "Zoe"]
    assert torch.equal(load_speaker(files[1]).embedding, given[0].embedding)
    shown = {state.module: state for state in states(str(home.parents[2] / "tiny.toml"))}
    assert shown["speakers/Zoe"].licence == "CC0-1.0"
    assert shown["speakers/Zoe"].origin == "training"
    write_spoken(preset, modules(preset, "vocoder"))
    assert [file.stem for file in speaker_files("tiny")] == ["default", "Zoe"]


def test_the_list_shows_the_set_that_speaks(path: str, preset: Preset) -> None:
    assert not [state for state in states(path) if state.module.startswith("voice/")]
    root = write_whole(preset)
    shown = {state.module: state for state in states(path) if state.module.startswith("voice/")}
    assert shown.keys() == {f"voice/{name}" for name in SPOKEN_MODULES}
    assert all(state.ready for state in shown.values())
    (root / "vocoder/model.safetensors").unlink()
    assert not {state.module: state for state in states(path)}["voice/vocoder"].ready


def test_a_damaged_set_is_told(path: str, preset: Preset) -> None:
    file = write_whole(preset) / "vocoder/model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    assert missing_for_voice(path) == ["vocoder"]
    with pytest.raises(WeightsError, match="has lost files or parts of them; train it again"):
        load_module(path, "vocoder")
    voices = load_voices(VoiceDecoderSettings(preset=path))
    assert list(voices.by_name) == ["pico"]
    voices.close()


def test_what_has_no_place_in_a_set_is_refused(path: str, preset: Preset, home: Path) -> None:
    with pytest.raises(WeightsError, match=r"a voice set is made of .*; given: llm"):
        write_spoken(preset, modules(preset, "llm"))
    with pytest.raises(WeightsError, match="given: nothing"):
        write_spoken(preset, {})
    with pytest.raises(WeightsError, match="with the flow matching that learned them"):
        write_spoken(preset, modules(preset, "vocoder"), speakers=somebody(preset))
    narrow = (random_speaker(3, name="Ada"),)
    with pytest.raises(WeightsError, match=r"embedding of speaker 'Ada' is 3; preset 'tiny' has 8"):
        write_spoken(preset, modules(preset, "flow_matching"), speakers=narrow)
    with pytest.raises(AbsentWeightsError, match="the weights of speech_tokenizer are not in"):
        write_spoken(preset, modules(preset, "flow_matching"), speakers=somebody(preset))
    assert not (home / "voice").exists()
    with pytest.raises(WeightsError, match="there is no preset 'huge'"):
        voice_set("huge")


def test_who_asks_where_a_voice_is_needs_no_pytorch() -> None:
    code = (
        "import sys; from minmo.weights.spoken import voice_set; from minmo.weights.needs import "
        "missing_for_voice; voice_set('mini'); missing_for_voice('mini'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_knows_other_tokens_than_the_tokenizers_that_is_here_is_refused(
    preset: Preset, home: Path
) -> None:
    root = write_whole(preset)
    here = sha256(preset, TOKENIZER, root)
    made = modules(preset, "output_projector", "voice_token_lm", seed=2)
    before = sha256(preset, "voice_token_lm", root)
    with pytest.raises(
        WeightsError, match=r"output_projector was trained with the tokens of .*0{64}"
    ):
        write_spoken(preset, made, tokenizer_sha256="0" * 64)
    assert sha256(preset, "voice_token_lm", root) == before
    write_spoken(preset, made, tokenizer_sha256=here)
    # What reads no tokens has nothing to agree about.
    write_spoken(preset, modules(preset, "vocoder"), tokenizer_sha256="0" * 64)
