"""The prepared weights of `mini` against the programs that they came from.

What compares with the packages' own files needs those: `minmo weights --keep-downloads`.
"""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, MoonshineForConditionalGeneration
from ttspico import TtsEngine

from minmo.weights import (
    WeightsError,
    ensure,
    home,
    load_state_dict,
    read_config,
    triton,
    weights_folder,
)
from minmo.weights.archive import extract
from minmo.weights.artifacts import MOONSHINE, SMOLLM2, Artifact

# Text and the tokens that llama.cpp makes of it with the GGUF file's own tokenizer.
TOKENS = {
    "Hello, world! It's 1984 and 12345.67.": [
        19556,
        28,
        905,
        17,
        657,
        506,
        216,
        33,
        41,
        40,
        36,
        284,
        216,
        33,
        34,
        35,
        36,
        37,
        30,
        38,
        39,
        30,
    ],
    "naïve café 😀 你好 Привет": [
        3546,
        46494,
        37366,
        40303,
        218,
        216,
        18645,
        250,
        48392,
        138,
        5470,
        249,
        46879,
        16464,
        32547,
    ],
    "<|im_start|>user\nhi<|im_end|>\n": [1, 4093, 198, 6004, 2, 198],
    "   lead  spaces\t\ttabs\n\n\nnl": [
        256,
        1022,
        216,
        5600,
        197,
        197,
        100,
        7366,
        1116,
        198,
        14861,
    ],
    "don't I'll we've THEY'RE": [12420, 982, 339, 3060, 392, 3543, 6462, 73, 23, 3256],
    "é combining": [85, 151, 219, 9301],
    "a b c": [81, 15442, 82, 321, 221, 83],
    "  7\n8": [256, 39, 198, 40],
}


def prepared(module: str) -> Path:
    try:
        return weights_folder("mini", module)
    except WeightsError as error:
        pytest.skip(str(error))


def unpacked(artifact: Artifact, folder: Path) -> list[Path]:
    archive = home.downloads() / artifact.archive
    if not archive.exists():
        pytest.skip(f"{archive} is not there; `minmo weights --keep-downloads` leaves it")
    extract(artifact, archive, folder)
    return [folder / member for member in artifact.members]


def spoken(text: str) -> NDArray[np.float32]:
    """Return synthetic speech, 16 kHz mono, in [-1, 1]."""
    return np.frombuffer(TtsEngine("en-US").speak(text), np.int16).astype(np.float32) / 32768


def median_load_seconds(folder: Path) -> float:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        load_state_dict(folder)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[1]


@pytest.mark.parametrize("module", ["voice_encoder", "llm"])
def test_weights_load_in_less_than_a_second(module: str) -> None:
    assert median_load_seconds(prepared(module)) < 1.0


def test_what_is_ready_is_found_ready_in_50_ms() -> None:
    for module in ("voice_encoder", "llm", "vad"):
        prepared(module)
    started = time.perf_counter()
    ensure("mini", only=("voice_encoder", "llm", "vad"))
    assert time.perf_counter() - started < 0.05


def test_transformers_finds_every_tensor_of_the_voice_encoder_and_hears_right() -> None:
    folder = prepared("voice_encoder")
    model, info = MoonshineForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    audio = torch.from_numpy(spoken("What is the capital of France?"))[None]
    with torch.no_grad():
        tokens = model.eval().generate(audio, max_new_tokens=30)
    text = Tokenizer.from_file(str(folder / "tokenizer.json")).decode(tokens[0].tolist())
    assert text == "What is the capital of France?"


def test_the_voice_encoder_equals_the_onnx_runtimes(tmp_path: Path) -> None:
    folder = prepared("voice_encoder")
    encoder_onnx, _ = unpacked(MOONSHINE, tmp_path)
    audio = spoken("The quick brown fox jumps over the lazy dog, and the dog does not mind.")[None]
    session = onnxruntime.InferenceSession(encoder_onnx)
    expected = session.run(None, {session.get_inputs()[0].name: audio})[0]
    model = MoonshineForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        frames = model.model.encoder(torch.from_numpy(audio)).last_hidden_state.numpy()
    assert frames.shape == expected.shape
    assert np.abs(frames - expected).max() < 6e-4


def test_the_llm_answers() -> None:
    folder = prepared("llm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    message = {"role": "user", "content": "What is the capital of France?"}
    text = tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        answer = model.eval().generate(**prompt, max_new_tokens=24, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])


def test_the_llm_equals_transformers_own_reading_of_the_gguf(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate")
    folder = prepared("llm")
    (gguf_file,) = unpacked(SMOLLM2, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
    ).eval()
    tokens = torch.tensor([TOKENS["Hello, world! It's 1984 and 12345.67."]])
    with torch.no_grad():
        expected = model(tokens).logits
        ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        exact = dequantised(gguf_file)
        assert ours.load_state_dict(exact, strict=False).unexpected_keys == []
        assert (ours(tokens).logits - expected).abs().max() < 1e-4
    stored = load_state_dict(folder)
    assert stored.keys() == exact.keys()
    assert all(torch.equal(stored[name], value.half()) for name, value in exact.items())


def dequantised(gguf_file: Path) -> dict[str, torch.Tensor]:
    from gguf import GGUFReader

    from minmo.weights import llama_gguf

    tensors = llama_gguf.dequantise(GGUFReader(gguf_file))
    return {name: torch.from_numpy(value) for name, value in tensors.items()}


@pytest.mark.parametrize("text", TOKENS)
def test_text_is_cut_as_llama_cpp_cuts_it(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(prepared("llm") / "tokenizer.json"))
    encoded = tokenizer.encode(text)
    assert encoded.ids == TOKENS[text]
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text


def test_the_configurations_have_the_published_sizes() -> None:
    encoder, llm = read_config(prepared("voice_encoder")), read_config(prepared("llm"))
    assert (encoder["hidden_size"], encoder["encoder_num_hidden_layers"]) == (288, 6)
    assert (llm["hidden_size"], llm["num_hidden_layers"], llm["vocab_size"]) == (576, 30, 49152)
    assert (llm["num_attention_heads"], llm["num_key_value_heads"]) == (9, 3)


def test_the_voice_activity_graph_tells_speech_from_silence() -> None:
    session = onnxruntime.InferenceSession(prepared("vad") / "silero_vad.onnx")

    def loudest(audio: NDArray[np.float32]) -> float:
        state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32)
        highest = 0.0
        for start in range(0, len(audio) - 511, 512):
            window = np.concatenate([context, audio[None, start : start + 512]], axis=1)
            inputs = {"input": window, "state": state, "sr": np.array(16000)}
            probability, state = session.run(None, inputs)
            context = window[:, -64:]
            highest = max(highest, float(probability[0, 0]))
        return highest

    assert loudest(spoken("What is the capital of France?")) > 0.9
    assert loudest(np.zeros(16000, np.float32)) < 0.1


def test_the_triton_server_starts() -> None:
    prepared("triton")
    done = subprocess.run(
        [triton.server_binary(), "--help"], capture_output=True, text=True, timeout=30, check=False
    )
    assert "--model-repository" in done.stdout + done.stderr
    assert triton.fits_machine(home.triton_folder()), sys.version
