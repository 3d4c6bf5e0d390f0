"""Published figures, most of the paper itself (MinMo, arXiv 2501.06282), to stand beside ours."""

from __future__ import annotations

ASR = "MinMo (paper): WER 4.13 % on Fleurs, 10 languages, with an 8 B model"
SQA = (
    "MinMo (paper): Llama Questions 78.9 % speech in, text out, with an 8 B model; "
    "first text token about 100 ms after the question on an L20 GPU"
)
DIALOGUE = (
    "MinMo (paper): Alpaca 6.48 from speech, 6.59 from the same LLM behind a recogniser; "
    "ChitChat 7.20 and 7.18"
)
TTS = (
    "MinMo (paper): SEED test-en WER 2.90 % and NMOS 3.56, with an 8 B model; first audio 150 ms "
    "(5 text tokens) + 70 ms (15 speech tokens) + 130 ms (token2wav) on an L20 GPU"
)
INSTRUCT = (
    "MinMo (paper): 98.4 % of spoken style instructions followed, 100 % of those of rate, with an "
    "8 B model"
)
SPEECH_OUT = (
    "MinMo (paper): speech in, speech out: Llama Questions 48.3 % (text out 78.9 %), Web Questions "
    "39.9 %, with an 8 B model"
)
DUPLEX = (
    "MinMo (paper), simulated conversations, K = 1 / 5 / 10: assistant turn-taking 0.787 / 0.962 / "
    "0.985, user turn-taking 0.257 / 0.815 / 0.994; Alimeeting, assistant turn-taking 0.614 / "
    "0.754 / 0.804; back-channels heard rightly 70 to 80 %"
)
FULL_DUPLEX_BENCH = (
    "Full-Duplex-Bench v1 (its own recordings; Moshi / Freeze-Omni / Gemini Live): the floor taken "
    "in pauses 98 / 64 / 26 %, at ends of turns 94 / 34 / 66 % after 0.27 / 0.95 / 1.30 s, after "
    "an interruption in 0.26 / 1.41 / 1.18 s"
)
