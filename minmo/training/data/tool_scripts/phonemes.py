"""Text to phonemes: lines of `{"texts": [...]}` in, `{"phonemes": [[sentence, ...], ...]}` out."""

from __future__ import annotations

import json
import sys

from piper.phonemize_espeak import EspeakPhonemizer  # type: ignore[import-not-found]


def main() -> None:
    """Answers until the input ends."""
    phonemizer = EspeakPhonemizer()
    for line in sys.stdin:
        texts = json.loads(line)["texts"]
        said = [
            ["".join(sentence) for sentence in phonemizer.phonemize("en-us", text)]
            for text in texts
        ]
        print(json.dumps({"phonemes": said}), flush=True)


main()
