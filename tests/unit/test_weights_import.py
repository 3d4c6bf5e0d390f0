"""What others published is imported as it is, computes what it did there, or is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import WhisperFeatureExtractor

from minmo.model.chunking import Chunking
from minmo.model.features import stack_frames
from minmo.model.flow_matching import FlowMatching
from minmo.model.llm import Llm, LlmCache, Segment
from minmo.model.moonshine_recognizer import MoonshineRecognizer
from minmo.model.sense_voice_encoder import SenseVoiceEncoder, SenseVoiceEncoderConfig
from minmo.model.vocoder import Vocoder
from minmo.model.voice_token_lm import VoiceTokenLm
from minmo.model.whisper_recognizer import WhisperRecognizer
from minmo.presets import Preset, build_module, load_preset
from minmo.weights import WeightsError, weights_folder
from minmo.weights.folder import read_manifest
from minmo.weights.importing import Imported, import_weights
from minmo.weights.modules import load_module
from minmo.weights.progress import NoProgress
from minmo.weights.reading import map_torch
from tests.unit import published_checkpoints as made

CLOSE = {"atol": 1e-4, "rtol": 0.0}
CLIP = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(3)) / 10


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINMO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def imported(source: Path, preset: Preset, **options: Any) -> Imported:
    """What became of a checkpoint that has one folder."""
    (one,) = import_weights(source, preset, **options)
    return one


def refused(source: Path, preset: Preset, **options: Any) -> str:
    with pytest.raises(WeightsError) as caught:
        import_weights(source, preset, **options)
    return str(caught.value)


# ---- each format, end to end --------------------------------------------------------------------


@torch.inference_mode()
def test_whisper_hears_and_writes_what_it_did(tmp_path: Path) -> None:
    theirs, preset = made.whisper(tmp_path / "whisper"), made.preset(**made.WHISPER)
    one = imported(tmp_path / "whisper", preset)
    assert one.modules == ("voice_encoder", "recognizer")
    features = WhisperFeatureExtractor(feature_size=16)(
        CLIP[0].numpy(), sampling_rate=16_000, return_tensors="pt"
    )
    expected = theirs.model.encoder(features.input_features).last_hidden_state
    frames = load_module(preset, "voice_encoder")(CLIP)
    torch.testing.assert_close(frames, expected, **CLOSE)
    recogniser = load_module(preset, "recognizer")
    assert isinstance(recogniser, WhisperRecognizer)
    tokens = torch.tensor([[1, 5, 9]])
    logits = theirs(encoder_outputs=(expected,), decoder_input_ids=tokens).logits
    torch.testing.assert_close(recogniser(tokens, recogniser.start(frames)), logits, **CLOSE)


@torch.inference_mode()
def test_moonshine_hears_and_writes_what_it_did(tmp_path: Path) -> None:
    theirs, preset = made.moonshine(tmp_path / "moonshine"), made.preset()
    imported(tmp_path / "moonshine", preset)
    expected = theirs.model.encoder(CLIP).last_hidden_state
    frames = load_module(preset, "voice_encoder")(CLIP)
    torch.testing.assert_close(frames, expected, **CLOSE)
    recogniser = load_module(preset, "recognizer")
    assert isinstance(recogniser, MoonshineRecognizer)
    tokens = torch.tensor([[1, 5, 9]])
    logits = theirs(CLIP, decoder_input_ids=tokens).logits
    torch.testing.assert_close(recogniser(tokens, recogniser.start(frames)), logits, **CLOSE)


@pytest.mark.parametrize("shard", ["5GB", "12KB"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@torch.inference_mode()
def test_an_llm_in_one_file_or_in_shards_predicts_what_it_did(
    tmp_path: Path, family: str, shard: str
) -> None:
    theirs = getattr(made, family)(tmp_path / "llm", max_shard_size=shard)
    assert (tmp_path / "llm/model.safetensors.index.json").exists() == (shard != "5GB")
    preset = made.preset(**made.QWEN2) if family == "qwen2" else made.preset()
    imported(tmp_path / "llm", preset)
    ours = load_module(preset, "llm")
    assert isinstance(ours, Llm)
    tokens = torch.tensor([5, 17, 50, 3])
    cache = LlmCache(preset.llm, slots=1, context=8)
    hidden = ours(ours.embed(tokens), [Segment(0, 0, 4)], cache)
    torch.testing.assert_close(ours.logits(hidden), theirs(tokens[None]).logits[0], **CLOSE)


@torch.inference_mode()
def test_sense_voice_hears_what_it_did(tmp_path: Path) -> None:
    theirs = made.sense_voice(tmp_path / "sense")
    preset = made.preset(**made.SENSE_VOICE, recognizer=None)
    imported(tmp_path / "sense", preset)
    ours = load_module(preset, "voice_encoder")
    assert isinstance(ours, SenseVoiceEncoder)
    shift = torch.tensor([-12 - number / 10 for number in range(56)])
    scale = torch.tensor([0.2 + number / 100 for number in range(56)])
    joined = (stack_frames(ours.fbank(CLIP), 7, 6) + shift) * scale
    speech = torch.cat((theirs.embed.weight[None, [4, 1, 2, 14]], joined), dim=1)
    expected, _ = theirs.encoder(speech, torch.tensor([speech.shape[1]]))
    found = ours(CLIP, language="en", written=True)
    torch.testing.assert_close(found, expected[:, 4:], **CLOSE)
    for name, value in theirs.ctc.state_dict().items():
        assert torch.equal(ours.ctc.state_dict()[name], value)


@torch.inference_mode()
def test_cosyvoice_speaks_what_it_did(tmp_path: Path) -> None:
    preset = made.preset(**made.COSYVOICE)
    lm, flow, vocoder = made.cosyvoice(tmp_path / "cosy", preset)
    # What else is in the folder is nothing to us.
    torch.save({"a speaker": {"embedding": torch.zeros(1)}}, tmp_path / "cosy/spk2info.pt")
    (tmp_path / "cosy/config.json").write_text("{}")
    folders = import_weights(tmp_path / "cosy", preset)
    assert [one.modules for one in folders] == [
        ("voice_token_lm",),
        ("flow_matching",),
        ("vocoder",),
    ]
    ours = load_module(preset, "voice_token_lm")
    assert isinstance(ours, VoiceTokenLm)
    tokens = torch.tensor([3, 0, 8])
    hidden = lm.trunk(inputs_embeds=lm.speech_embedding[tokens][None]).last_hidden_state[0]
    cache = LlmCache(ours.cache_config, slots=1, context=8)
    found = ours.logits(ours(ours.embed_speech(tokens), [Segment(0, 0, 3)], cache))
    torch.testing.assert_close(found, lm.head(hidden), **CLOSE)
    mel = _published_mel(flow, preset)
    made_here = load_module(preset, "flow_matching")
    assert isinstance(made_here, FlowMatching)
    tokens, speaker, noise = _spoken(preset)
    found = made_here(tokens, speaker, chunking=Chunking.whole(7), noise=noise)
    torch.testing.assert_close(found, mel, **CLOSE)
    speaks = load_module(preset, "vocoder")
    assert isinstance(speaks, Vocoder)
    torch.testing.assert_close(speaks.pitch(mel), vocoder.f0_predictor(mel.mT), **CLOSE)
    source = torch.randn(1, 14 * 480, generator=torch.Generator().manual_seed(2)) / 10
    expected = vocoder.decode(mel.mT, source[:, None])
    assert expected.std() > 0.01
    torch.testing.assert_close(speaks.filter(mel, source), expected, **CLOSE)


def _spoken(preset: Preset) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randint(9, (1, 7), generator=generator),
        torch.randn(1, preset.flow_matching.speaker_width, generator=generator),
        torch.randn(1, 14, 80, generator=generator),
    )


def _published_mel(flow: Any, preset: Preset) -> Tensor:
    tokens, speaker, noise = _spoken(preset)
    mel, _ = flow.inference(
        token=tokens,
        token_len=torch.tensor([7]),
        prompt_token=tokens[:, :0],
        prompt_token_len=torch.tensor([0]),
        prompt_feat=torch.zeros(1, 0, 80),
        prompt_feat_len=None,
        embedding=speaker,
        finalize=True,
        noised_mels=noise.mT,
    )
    return mel.mT


# ---- what is written ----------------------------------------------------------------------------


def test_the_folder_has_everything_and_says_where_it_comes_from(tmp_path: Path, home: Path) -> None:
    made.qwen2(tmp_path / "llm", max_shard_size="12KB")
    one = imported(tmp_path / "llm", made.preset(**made.QWEN2))
    folder = home / "weights/tiny/llm"
    assert Path(one.folder) == folder
    assert weights_folder(made.preset(**made.QWEN2), "llm") == folder
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} < names
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.origin == "import"
    assert {source.licence for source in manifest.sources} == {"Apache-2.0"}
    shards = sorted(f"llm/{path.name}" for path in (tmp_path / "llm").glob("*.safetensors"))
    assert [source.artefact for source in manifest.sources] == shards
    assert all(len(source.sha256) == 64 for source in manifest.sources)


def test_values_and_number_types_stay_as_published(tmp_path: Path, home: Path) -> None:
    theirs = made.llama(tmp_path / "float").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "llm")
    (tmp_path / "llm/tokenizer.json").write_text("{}")
    one = imported(tmp_path / "llm", made.preset())
    assert one.dtypes == ("bfloat16",)
    given = load_file(tmp_path / "llm/model.safetensors")
    written = load_file(home / "weights/tiny/llm/model.safetensors")
    assert written.keys() == given.keys()
    assert all(torch.equal(written[name], given[name]) for name in given)


def test_transformers_loads_the_folder(tmp_path: Path, home: Path) -> None:
    theirs = made.whisper(tmp_path / "whisper")
    imported(tmp_path / "whisper", made.preset(**made.WHISPER))
    again = type(theirs).from_pretrained(home / "weights/tiny/voice_encoder")
    for name, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_the_encoder_alone_leaves_the_decoder_and_says_so(tmp_path: Path) -> None:
    made.whisper(tmp_path / "whisper")
    preset = made.preset(**made.WHISPER)
    one = imported(tmp_path / "whisper", preset, module="voice_encoder")
    assert one.modules == ("voice_encoder",)
    ((reason, count),) = one.unused.items()
    assert (reason, count > 10) == ("of the decoder, which voice_encoder is not", True)
    load_module(preset, "voice_encoder")
    with pytest.raises(WeightsError, match="the weights of recognizer are not in"):
        load_module(preset, "recognizer")
    imported(tmp_path / "whisper", preset, module="recognizer")
    load_module(preset, "recognizer")


def test_cosyvoices_text_head_is_left_out_and_its_text_table_makes_the_voice_read_text(
    tmp_path: Path,
) -> None:
    preset = made.preset(**made.COSYVOICE)
    assert preset.voice_token_lm.text_vocabulary == 0
    made.cosyvoice(tmp_path / "cosy", preset)
    one = imported(tmp_path / "cosy/llm.pt", preset)
    assert one.unused == {"the trunk's own text head": 1}
    lm = load_module(preset, "voice_token_lm")
    assert isinstance(lm, VoiceTokenLm)
    table = torch.load(tmp_path / "cosy/llm.pt")["llm.model.model.embed_tokens.weight"]
    assert torch.equal(lm.embed_text(torch.arange(len(table))), table)


def test_a_licence_that_is_given_wins_and_one_that_nobody_said_is_none(tmp_path: Path) -> None:
    made.llama(tmp_path / "llm")
    assert imported(tmp_path / "llm", made.preset(), licence="MIT").licence == "MIT"
    (tmp_path / "llm/README.md").unlink()
    assert imported(tmp_path / "llm", made.preset()).licence == "NOASSERTION"


def test_a_check_writes_nothing(tmp_path: Path, home: Path) -> None:
    made.llama(tmp_path / "llm")
    one = imported(tmp_path / "llm", made.preset(), check_only=True)
    assert one.parameters == sum(
        tensor.numel() for tensor in load_file(tmp_path / "llm/model.safetensors").values()
    )
    assert not home.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no room")])
def test_what_stops_the_copy_leaves_the_old_folder_and_nothing_half(
    tmp_path: Path, home: Path, error: BaseException
) -> None:
    made.llama(tmp_path / "llm")
    imported(tmp_path / "llm", made.preset())
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}

    class Stops(NoProgress):
        def reached(self, task: str, done_bytes: int) -> None:
            if task == "write llm" and done_bytes > 1000:
                raise error

    with pytest.raises((KeyboardInterrupt, WeightsError)):
        import_weights(tmp_path / "llm", made.preset(), progress=Stops())
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


# ---- what is refused ----------------------------------------------------------------------------


def test_other_sizes_are_told_with_the_preset_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.llama(tmp_path / "llm")
    message = refused(tmp_path / "llm", made.preset(llm={"layers": 3, "mlp_width": 50}))
    assert "llm.layers: the preset has 3, the checkpoint 2" in message
    assert "llm.mlp_width: the preset has 50, the checkpoint 40" in message
    assert "llm lacks 9: model.layers.2.input_layernorm.weight" in message
    assert "model.layers.0.mlp.up_proj.weight expected 50 x 24, found 40 x 24" in message
    assert "llm has other shapes: 6: " in message
    assert "and 2 more" in message
    fitting = made.preset("fitting")
    monkeypatch.setattr("minmo.weights.importing.built_in_presets", lambda: ("8b", "fitting"))
    known = {"fitting": fitting, "8b": made.preset("8b", **made.QWEN2)}
    monkeypatch.setattr("minmo.weights.importing.load_preset", known.__getitem__)
    message = refused(tmp_path / "llm", made.preset(llm={"layers": 3}))
    assert message.endswith("It fits preset 'fitting': use --preset fitting")


def test_what_shapes_cannot_tell_is_read_from_the_configuration(tmp_path: Path) -> None:
    made.llama(tmp_path / "llm")
    message = refused(tmp_path / "llm", made.preset(llm={"rope_theta": 10_000.0}))
    assert message.endswith("llm.rope_theta: the preset has 10000.0, the checkpoint 100000.0")


def test_a_vocoder_that_looks_ahead_is_no_causal_one(tmp_path: Path) -> None:
    preset = made.preset(**made.COSYVOICE)
    made.cosyvoice(tmp_path / "cosy", preset)
    causal = made.preset(**made.COSYVOICE | {"vocoder": {"causal": True}})
    message = refused(tmp_path / "cosy/hift.pt", causal)
    assert "vocoder.causal: the preset has True, the checkpoint False" in message


def test_another_family_is_refused(tmp_path: Path) -> None:
    made.whisper(tmp_path / "whisper")
    message = refused(tmp_path / "whisper", made.preset())
    assert "is Whisper (Hugging Face), which has nothing for any module of preset 'tiny'" in message


def test_another_module_is_refused(tmp_path: Path) -> None:
    made.llama(tmp_path / "llm")
    message = refused(tmp_path / "llm", made.preset(), module="vocoder")
    assert "has nothing for vocoder of preset 'tiny'; it has: llm" in message


def test_missing_and_unknown_tensors_are_named_up_to_a_readable_number(tmp_path: Path) -> None:
    preset = made.preset(**made.COSYVOICE)
    made.cosyvoice(tmp_path / "cosy", preset)
    state = map_torch(tmp_path / "cosy/llm.pt")
    kept = {name: value for name, value in state.items() if ".layers.1." not in name}
    torch.save({**kept, "surprise": torch.zeros(1)}, tmp_path / "cosy/other.pt")
    message = refused(tmp_path / "cosy/other.pt", preset)
    assert "voice_token_lm lacks 12: llm.model.model.layers.1.self_attn.q_proj.weight" in message
    assert "voice_token_lm has no place for 1: surprise" in message
    few = {name: value for name, value in state.items() if ".layers." not in name}
    torch.save(few, tmp_path / "cosy/other.pt")
    assert "and 4 more" in refused(tmp_path / "cosy/other.pt", preset)


def test_nan_is_refused_by_name(tmp_path: Path, home: Path) -> None:
    made.llama(tmp_path / "llm")
    path = tmp_path / "llm/model.safetensors"
    state = load_file(path)
    state["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(state, path, metadata={"format": "pt"})
    expected = f"{path} holds NaN or infinity in tensor 'model.layers.1.mlp.up_proj.weight'"
    assert expected in refused(tmp_path / "llm", made.preset(), check_only=True)
    assert expected in refused(tmp_path / "llm", made.preset())
    assert not (home / "weights/tiny/llm").exists()


def test_a_cut_file_is_refused_with_the_tensor_and_both_sizes(tmp_path: Path) -> None:
    made.llama(tmp_path / "llm")
    path = tmp_path / "llm/model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    message = refused(tmp_path / "llm", made.preset())
    assert f"ends at byte {len(whole)} of {len(whole) - 50}" in message


@pytest.mark.parametrize("left", [0, 30, 20_000])
def test_a_cut_file_of_pytorch_is_refused(tmp_path: Path, left: int) -> None:
    preset = made.preset(**made.COSYVOICE)
    made.cosyvoice(tmp_path / "cosy", preset)
    path = tmp_path / "cosy/llm.pt"
    path.write_bytes(path.read_bytes()[:left])
    message = refused(tmp_path / "cosy", preset)
    assert f"cannot load {path}: it is cut, damaged, or holds more than tensors" in message


def test_what_pytorch_advises_for_a_damaged_file_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "llm.pt").write_bytes(b"no pickle at all")
    message = refused(tmp_path / "llm.pt", made.preset())
    assert "it is cut, damaged, or holds more than tensors" in message
    assert "weights_only" not in message


@pytest.mark.parametrize("name", ["llm", "flow", "hift"])
def test_a_known_file_that_is_not_recognised_is_named_with_what_was_looked_for(
    tmp_path: Path, home: Path, name: str
) -> None:
    preset = made.preset(**made.COSYVOICE)
    made.cosyvoice(tmp_path / "cosy", preset)
    path = tmp_path / f"cosy/{name}.pt"
    prefixed = {f"module.{key}": value.clone() for key, value in map_torch(path).items()}
    torch.save(prefixed, path)
    marks = {"llm": "llm_embedding", "flow": "input_embedding", "hift": "f0_predictor.classifier"}
    message = refused(tmp_path / "cosy", preset)
    assert message.startswith(f"{path} is no checkpoint that is known by its tensors")
    assert f"{marks[name]}.weight" in message
    assert "such as module." in message
    assert not home.exists()


def test_two_files_with_the_same_module_are_refused(tmp_path: Path) -> None:
    preset = made.preset(**made.COSYVOICE)
    made.cosyvoice(tmp_path / "cosy", preset)
    torch.save(map_torch(tmp_path / "cosy/llm.pt"), tmp_path / "cosy/model.pt")
    assert "both hold a voice_token_lm of CosyVoice 2" in refused(tmp_path / "cosy", preset)


def test_whole_numbers_for_a_weight_are_refused(tmp_path: Path, home: Path) -> None:
    preset = made.preset(**made.COSYVOICE)
    made.cosyvoice(tmp_path / "cosy", preset)
    state = map_torch(tmp_path / "cosy/llm.pt")
    torch.save({**state, "llm_decoder.bias": torch.zeros(12, dtype=torch.int64)}, tmp_path / "a.pt")
    message = refused(tmp_path / "a.pt", preset, check_only=True)
    expected = "head_bias expected floating-point numbers, found whole numbers (int64)"
    assert f"voice_token_lm has numbers of another kind: 1: {expected}" in message


@pytest.mark.parametrize(
    ("module", "sizes", "message"),
    [
        ("voice_token_lm", {"heads": 7, "head_dim": 128, "kv_heads": 1}, "heads: the preset has 7"),
        ("flow_matching", {"estimator_heads": 4, "estimator_head_dim": 128}, "preset has 128, the"),
        ("vocoder", {"block_dilations": ((1, 2, 5),) * 3}, "vocoder.block_dilations: the preset"),
        ("vocoder", {"upsample_rates": (4, 5, 3)}, "vocoder.upsample_rates: the preset"),
        ("voice_encoder", {"heads": 8}, "voice_encoder.heads: the preset has 8, the checkpoint 4"),
    ],
)
def test_what_the_published_files_have_and_no_shape_shows_is_held_against_the_preset(
    tmp_path: Path, module: str, sizes: dict[str, Any], message: str
) -> None:
    preset = load_preset("8b")
    if module == "voice_encoder":
        preset = replace(preset, voice_encoder=SenseVoiceEncoderConfig(), recognizer=None)
    preset = replace(preset, **{module: replace(getattr(preset, module), **sizes)})
    published = {
        "voice_token_lm": {
            "llm_embedding.weight": torch.zeros(2, 896),
            "llm_decoder.weight": torch.zeros(6564, 896),
            "speech_embedding.weight": torch.zeros(6564, 896),
        },
        "flow_matching": {
            "input_embedding.weight": torch.zeros(6561, 512),
            "spk_embed_affine_layer.weight": torch.zeros(80, 192),
            "encoder_proj.weight": torch.zeros(80, 512),
        },
        "vocoder": {
            "conv_pre.bias": torch.zeros(512),
            "f0_predictor.classifier.weight": torch.zeros(1, 512),
        },
        "voice_encoder": {
            "encoder.encoders0.0.self_attn.fsmn_block.weight": torch.zeros(512, 1, 11),
            "ctc.ctc_lo.weight": torch.zeros(25_055, 512),
        },
    }[module]
    (tmp_path / "am.mvn").write_text("<AddShift> [ 0 ] <Rescale> [ 1 ]")
    torch.save(published, tmp_path / "published.pt")
    assert message in refused(tmp_path / "published.pt", preset)


def test_weights_under_a_training_scripts_name_are_found(tmp_path: Path) -> None:
    preset = made.preset(**made.COSYVOICE)
    made.cosyvoice(tmp_path / "cosy", preset)
    state = map_torch(tmp_path / "cosy/llm.pt")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "epoch_3.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    hashes = [
        imported(tmp_path / name, preset).hashes for name in ("cosy/llm.pt", "epoch_3.pt", "old.pt")
    ]
    assert hashes[0] == hashes[1] == hashes[2]


def test_cam_is_imported_by_its_tensors(tmp_path: Path) -> None:
    preset = made.preset()
    theirs = build_module(preset, "speaker_embedding").eval()
    torch.save(theirs.state_dict(), tmp_path / "campplus.bin")
    imported(tmp_path / "campplus.bin", preset)
    clip = torch.randn(1, 60, 80)
    ours = load_module(preset, "speaker_embedding")
    torch.testing.assert_close(ours(clip), theirs(clip), **CLOSE)


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    made.llama(tmp_path / "llm", max_shard_size="12KB")
    (tmp_path / "llm/model-00002-of-00003.safetensors").unlink(missing_ok=True)
    shards = json.loads((tmp_path / "llm/model.safetensors.index.json").read_text())["weight_map"]
    name = sorted(set(shards.values()))[1]
    (tmp_path / "llm" / name).unlink(missing_ok=True)
    assert f"has not {name}" in refused(tmp_path / "llm", made.preset())


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"llm_embedding.weight": torch.zeros(2), "more": Runs()}, tmp_path / "llm.pt")
    assert "holds more than tensors" in refused(tmp_path / "llm.pt", made.preset())
    assert not (tmp_path / "ran").exists()


def test_a_text_module_needs_its_tokenizer(tmp_path: Path) -> None:
    made.llama(tmp_path / "llm")
    (tmp_path / "llm/tokenizer.json").unlink()
    assert "has no tokenizer.json" in refused(tmp_path / "llm", made.preset())


def test_what_is_no_checkpoint_says_what_would_be(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = refused(tmp_path / "empty", made.preset())
    assert "is no checkpoint that can be imported. What can: a Hugging Face folder" in message
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    assert "no checkpoint that is known by its tensors" in refused(tmp_path / "a.pt", made.preset())
    assert "there is no" in refused(tmp_path / "nowhere", made.preset())
    (tmp_path / "empty/config.json").write_text('{"model_type": "bert"}')
    assert "model_type 'bert'" in refused(tmp_path / "empty", made.preset())
    (tmp_path / "empty/config.json").write_text('{"model_type": "llama"}')
    assert "has neither model.safetensors nor" in refused(tmp_path / "empty", made.preset())
