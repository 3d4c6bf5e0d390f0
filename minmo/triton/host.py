"""Builds the engine that Triton hosts, from settings and prepared weights."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from minmo.engine.engine import Engine, EngineOptions
from minmo.engine.prompt import TEXT_END, TURN_END
from minmo.engine.threads import apart
from minmo.model.duplex_predictor import DuplexPredictor
from minmo.model.llm import Llm, LlmConfig
from minmo.model.operating_points import OperatingPoint, from_metadata
from minmo.settings import LlmModelSettings
from minmo.v1 import llm_pb2
from minmo.weights.errors import AbsentWeightsError, WeightsError
from minmo.weights.load import load_state_dict, read_config, weights_folder
from minmo.weights.modules import load_module
from minmo.weights.writing import FILE

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_engine(settings: LlmModelSettings) -> Engine:
    """Loads the LLM of a preset and gives it an engine, not started yet.

    Raises:
        PresetError: there is no such preset.
        WeightsError: the weights are missing or damaged.
        ValueError: the settings or the weights do not fit this decoder.
    """
    torch.set_num_threads(settings.threads)
    folder = weights_folder(settings.preset, "llm")
    model = apart(partial(load_model, folder, settings.dtype))
    predictor = _predictor(settings)
    options = EngineOptions(
        stop_tokens=_stop_tokens(folder),
        slots=settings.slots,
        context=settings.context,
        max_tokens=settings.max_tokens,
        max_pending=settings.max_pending,
        idle_seconds=settings.idle_seconds,
    )
    if predictor is None:
        return Engine(model, options)
    options = replace(options, history=predictor.config.left_context + 1)
    return Engine(model, options, predictor.probabilities)


def _predictor(settings: LlmModelSettings) -> DuplexPredictor | None:
    """The full-duplex predictor, where it has been trained, and with what is here."""
    _, device = compute_kind(settings.dtype)
    try:
        module = load_module(settings.preset, "duplex_predictor", device=device)
    except AbsentWeightsError:
        return None
    except WeightsError as error:
        # A conversation without one is better than none.
        log.warning("there is no full-duplex predictor, voice activity decides: %s", error)
        return None
    return cast("DuplexPredictor", module)


def _operating_points(preset: str) -> tuple[OperatingPoint, ...]:
    """The thresholds of the preset's predictor.

    Raises:
        WeightsError: its file has some that make no sense.
    """
    path = weights_folder(preset, "duplex_predictor") / FILE
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    try:
        return from_metadata(metadata)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}; train and export the predictor again") from error


def compute_kind(dtype: str = "auto") -> tuple[torch.dtype, str]:
    """The number type, `float32` or `bfloat16`, and the device to compute with.

    `auto` is bfloat16 on a GPU. On a CPU it is float32: with weights that float16 holds exactly
    it is the faster one as well.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = dtype if dtype != "auto" else "bfloat16" if device == "cuda" else "float32"
    return _DTYPES[name], device


def load_model(folder: Path, dtype: str = "auto") -> Llm:
    """Loads a decoder in `auto`, `float32` or `bfloat16` (`compute_kind`)."""
    config = LlmConfig.from_dict(read_config(folder))
    state = load_state_dict(folder)
    return Llm.from_state_dict(config, state, *compute_kind(dtype), packed=True)


def description_of(engine: Engine, preset: str) -> llm_pb2.GetModelResponse:
    """What is said to who asks for the model."""
    return llm_pb2.GetModelResponse(
        preset=preset,
        replica_id=engine.replica_id,
        width=engine.model_config.width,
        vocabulary_size=engine.model_config.vocabulary_size,
        context_length=engine.options.context,
        slots=engine.options.slots,
        dtype=str(engine.dtype).removeprefix("torch."),
        operating_points=[
            llm_pb2.OperatingPoint(**asdict(point)) for point in _operating_points(preset)
        ]
        if engine.predicts
        else [],
    )


def _stop_tokens(folder: Path) -> frozenset[int]:
    """What ends an answer: what the checkpoint says, and what ends a turn or a text in ChatML.

    Qwen2.5's base models stop at the end of a text only; a conversation goes on turn by turn.
    """
    stated = json.loads((folder / "generation_config.json").read_text()).get("eos_token_id", [])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    marks = (tokenizer.token_to_id(mark) for mark in (TURN_END, TEXT_END))
    stop = stated if isinstance(stated, list) else [stated]
    return frozenset({*stop, *(mark for mark in marks if mark is not None)})
