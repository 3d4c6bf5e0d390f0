"""Training speech: made of texts with many synthetic voices, or brought from recordings.

Texts (`texts`) become phoneme ids (`phonemes`), and these shards of speech (`synthesis`, `shards`);
recordings become shards too (`recordings`, `asterisk`), transcribed where nobody has done it
(`agreement`). The LLM writes texts of its own and answers (`writing`, `answering`).
"""
