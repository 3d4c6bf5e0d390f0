"""What a tiny preset learns to speak from: its LLM, a speech tokenizer, clips, speech tokens."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from minmo.training.config import TrainingConfig, load_config, with_changes
from minmo.training.shar import read_shard
from minmo.training.speech_tokens import digest_of, tokenizer_sha256, write_tokens
from minmo.weights.load import weights_folder
from minmo.weights.modules import random_module, write_module
from tests.unit.tiny_presets import write_preset
from tests.unit.tiny_training import TEXTS

SPEECH_TOKENS = 9


def make_place(folder: Path) -> Path:
    """Writes a preset, and a home with what it needs to learn; returns the preset's path."""
    preset = write_preset(
        folder,
        llm={"vocabulary_size": 320, "max_context": 256},
        output_projector={"spelling_width": 8},
        voice_token_lm={"max_context": 512},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINMO_HOME", str(folder / "home"))
        for name in ("llm", "voice_encoder", "speech_tokenizer"):
            write_module(str(preset), name, random_module(str(preset), name, 1))
        _write_tokenizer(weights_folder(str(preset), "llm") / "tokenizer.json")
    return preset


def name_tokens(preset: Path, shard: Path, say: Callable[[str, Mapping[str, Any]], Any]) -> None:
    """Writes the speech tokens of a shard's clips: what `say` gives of a text and custom fields."""
    tokens = {
        clip.id: np.array(say(clip.text, clip.custom), np.int16) for clip in read_shard(shard)
    }
    sha256 = tokenizer_sha256(str(preset))
    write_tokens(shard.parent, shard, sha256, digest_of(shard), tokens)


def change_customs(shard: Path, change: Callable[[int], Mapping[str, Any]]) -> None:
    """Replaces text and custom fields of a shard's clips, by their numbers."""
    path = shard / "cuts.jsonl.gz"
    with gzip.open(path, "rt") as lines:
        cuts = [json.loads(line) for line in lines]
    for number, cut in enumerate(cuts):
        cut["supervisions"][0].update(change(number))
    with gzip.open(path, "wt") as lines:
        lines.writelines(json.dumps(cut) + "\n" for cut in cuts)


def spelled_aloud(text: str) -> list[int]:
    """Three speech tokens for each letter; alike for letters that are."""
    return [ord(letter) % SPEECH_TOKENS for letter in text for _ in range(3)]


def config(folder: Path, recipe: str, steps: int = 4, **changes: Any) -> TrainingConfig:
    """A short run of a recipe on the clips in `<folder>/speech`."""
    given = {
        "preset": str(folder / "tiny.toml"),
        "threads": 1,
        "precision": "float32",
        "data.folders": {str(folder / "speech"): 1.0},
        "data.seconds": 4.0,
        "data.pool": 4,
        "schedule.steps": steps,
        "schedule.minutes": None,
        "watch.log_steps": 1,
        "options.free_clips": 3,
        "options.llm_precision": "float32",
        "options.system_prompts": ["be kind", ""],
        "options.user_turns": ["", "a cat?"],
    }
    return with_changes(
        load_config(recipe), given | {key.replace("__", "."): v for key, v in changes.items()}
    )


def _write_tokenizer(path: Path) -> None:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*TEXTS, "system user assistant"] * 20, trainer)
    made.save(str(path))
