"""Sends recordings through Opus; prints what that costs, and what is still understood.

python examples/opus.py 127.0.0.1:7100 examples/questions    # needs minmo[train], for jiwer
"""

import asyncio
import csv
import re
import sys
import time
from pathlib import Path

import jiwer
import numpy as np

from minmo.audio.opus import DECODED_RATE_HZ, OpusDecoder, OpusEncoder
from minmo.client import Recording, Target, transcribe

RATE_HZ = 16_000


def words(text: str) -> str:
    """Without case and punctuation."""
    return " ".join(re.sub(r"[^a-z0-9' ]+", " ", text.lower()).split())


def decoded(packets: list[bytes], path: Path) -> Recording:
    """What a decoder gives."""
    decoder = OpusDecoder()
    samples = np.concatenate([decoder.decode(packet) for packet in packets])
    return Recording(path, samples, DECODED_RATE_HZ)


async def main(target: Target, folder: Path) -> None:
    """Everything; the file `questions.csv` has the words of each recording."""
    chance = np.random.default_rng(0)
    seconds = encoding = decoding = 0.0
    size = 0
    said: list[str] = []
    heard: dict[str, list[str]] = {"PCM": [], "Opus": [], "Opus, 5 % of the packets lost": []}
    with (folder / "questions.csv").open() as table:
        for row in csv.DictReader(table):
            recording = Recording.read(folder / row["file"]).at_rate(RATE_HZ)
            began = time.process_time()
            packets = OpusEncoder(RATE_HZ).encode(recording.samples, last=True)
            encoded = time.process_time()
            whole = decoded(packets, recording.path)
            decoding += time.process_time() - encoded
            encoding += encoded - began
            seconds += recording.duration_ms / 1000
            size += sum(map(len, packets))
            holed = [b"" if chance.random() < 0.05 else packet for packet in packets]
            ways = (recording, whole, decoded(holed, recording.path))
            for texts, sound in zip(heard.values(), ways, strict=True):
                texts.append(words((await transcribe(target, sound)).text))
            said.append(words(row["text"]))
    print(f"{seconds:.1f} s of speech: {size / seconds:.0f} bytes a second", end=", ")
    print(f"{1000 * encoding / seconds:.1f} ms a second to encode", end=", ")
    print(f"{1000 * decoding / seconds:.1f} ms to decode")
    for way, texts in heard.items():
        print(f"word error rate, {way}: {100 * jiwer.wer(said, texts):.1f} %")


address, questions = sys.argv[1:]
asyncio.run(main(Target(address), Path(questions)))
