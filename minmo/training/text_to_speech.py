"""The stage text-to-speech: the voice learns to say what the LLM writes (paper, section 3.4).

Texts are read as they are written, recordings are of what they say: so the voice learns to read
"1984" and "Dr." by itself, as nothing rewrites the LLM's tokens on their way to it.
"""

from __future__ import annotations

from minmo.training.speaking import SpeakingStage


class TextToSpeechStage(SpeakingStage):
    """The stage; its first recipe moves the output projector alone, the others both modules."""

    name = "text-to-speech"
