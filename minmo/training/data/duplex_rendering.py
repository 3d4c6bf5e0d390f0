"""Scenes to sound: two channels at 16 kHz, the user's microphone and the assistant's voice.

Nothing of it is kept: a scene sounds the same every time, and an hour of them is an hour of FLAC
for each channel that nobody has to store, copy or make anew when a level should be another one.
"""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from minmo.training.augmentation import Samples, limit_band, make_noise, reverberate
from minmo.training.data.duplex_scenes import Place, Said, Scene, scene_of
from minmo.training.data.duplex_sounds import make_sound
from minmo.training.data.levels import amplified, speech_dbfs
from minmo.training.data.lines import SPLITS
from minmo.training.errors import TrainingError
from minmo.training.shar import SAMPLE_RATE, SCENE, Clip, read_audio, read_set, read_shard

HEARD = ".heard"
_FADE_SECONDS = 0.01
_ROUNDING_SECONDS = 0.002
# What a loudspeaker of a laptop gives back, and its microphone takes up.
_ECHO_BAND, _ECHO_RT60 = (250.0, 5000.0), 0.15
_SHARDS_KEPT = 256


class Channels(NamedTuple):
    """The sound of a scene.

    Attributes:
        user: `[samples]`, what the user's microphone takes up, within -1 to 1.
        assistant: `[samples]`, what the assistant says.
    """

    user: Samples
    assistant: Samples


def render(scene: Scene, root: Path) -> Channels:
    """Makes the sound of a scene.

    Args:
        scene: to be heard.
        root: folder of the scenes, from which the clips' shards are named.

    Raises:
        TrainingError: a clip is not there any more, is another one, or cannot be read.
    """
    count = round(scene.seconds * SAMPLE_RATE)
    own, assistant, user = (np.zeros(count, np.float32) for _ in range(3))
    for said in scene.said:
        _add(assistant if said.channel == "assistant" else own, said.at, _stretch(said, root))
    for sound in scene.sounds:
        random = np.random.default_rng(sound.seed)
        made = make_sound(sound.what, sound.seconds, sound.level, random)
        _add(own, sound.at, _faded(made))
    place, random = scene.place, np.random.default_rng(scene.place.seed)
    user += own if place.rt60 is None else reverberate(own, place.rt60, random)
    user += _surroundings(place, assistant, random)
    return Channels(np.clip(user, -1.0, 1.0), np.clip(assistant, -1.0, 1.0))


def write_heard(root: Path, count: int) -> Path:
    """Writes the first scenes of each set as somebody can hear and read them.

    Args:
        root: folder of the scenes.
        count: of each set.

    Returns:
        The folder of the files: for each scene a stereo WAV, the user on the left, and its recipe.

    Raises:
        TrainingError: a scene or a clip of it cannot be read.
    """
    folder = root / HEARD
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        for clip in islice(read_set(root, split), count):
            scene = scene_of(clip.custom[SCENE], f"scene {clip.id}")
            sound = np.stack(render(scene, root), axis=1)
            soundfile.write(folder / f"{clip.id}.wav", sound, SAMPLE_RATE, subtype="PCM_16")
            text = json.dumps(scene.to_json(), indent=2)
            (folder / f"{clip.id}.json").write_text(f"{text}\n", "utf-8")
    return folder


def _surroundings(place: Place, assistant: Samples, random: np.random.Generator) -> Samples:
    """Noise and echo, `[samples]`."""
    around = np.zeros_like(assistant)
    if place.noise is not None:
        noise = make_noise(place.colour, len(around), random)
        power = float(np.sqrt(np.mean(np.square(noise)))) or 1.0
        around += noise * np.float32(10 ** (place.noise / 20) / power)
    if place.echo is not None and np.any(assistant):
        delay = int(place.echo_delay * SAMPLE_RATE)
        echo = limit_band(reverberate(assistant, _ECHO_RT60, random), *_ECHO_BAND)
        around[delay:] += echo[: len(around) - delay] * np.float32(10 ** (-place.echo / 20))
    return around


def _stretch(said: Said, root: Path) -> Samples:
    """The samples of a stretch of a clip, at its level."""
    folder = (root / said.shard).resolve()
    clip = _index(folder).get(said.clip)
    if clip is None or clip.seconds < said.end - _ROUNDING_SECONDS:
        raise TrainingError(
            f"clip {said.clip} is not in {folder} as it was when the scenes in {root} were made; "
            "make them again with `minmo data duplex`"
        )
    samples = read_audio(clip)
    samples = amplified(samples, said.level - speech_dbfs(samples, SAMPLE_RATE))
    return _faded(samples[round(said.start * SAMPLE_RATE) : round(said.end * SAMPLE_RATE)])


@lru_cache(maxsize=_SHARDS_KEPT)
def _index(folder: Path) -> dict[str, Clip]:
    """The clips of a shard, by their ids."""
    return {clip.id: clip for clip in read_shard(folder)}


def _faded(samples: Samples) -> Samples:
    """Without clicks where it begins and ends."""
    length = min(int(_FADE_SECONDS * SAMPLE_RATE), len(samples) // 2)
    if not length:
        return samples
    ramp = np.linspace(0, 1, length, dtype=np.float32)
    faded = samples.copy()
    faded[:length] *= ramp
    faded[-length:] *= ramp[::-1]
    return faded


def _add(channel: Samples, at: float, samples: Samples) -> None:
    """Adds samples to a channel from a time on; what is beyond its end is left out."""
    start = round(at * SAMPLE_RATE)
    part = samples[: max(0, len(channel) - start)]
    channel[start : start + len(part)] += part
