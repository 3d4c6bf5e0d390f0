"""Servers that compute nothing: they send what real ones sent once, at the same times.

With them more conversations can be held than the models of a machine could hold, so that what is
between the models can be measured. `orchestrator` stands in for an orchestrator, to load a gateway;
`encoder`, `llm` and `voice_decoder` for the three services with models, to load all the rest.

Whoever shows figures from here says that outputs were replayed from a recording.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def stand_ins(recording: Path) -> Mapping[str, Sequence[str]]:
    """What a stack runs in the place of the services with models; see `StackConfig.stand_ins`."""
    path = str(recording.absolute())
    return {
        service: ("-m", "minmo.bench.replay", service, "--recording", path)
        for service in ("encoder", "llm", "voice_decoder")
    }
