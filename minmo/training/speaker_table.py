"""An embedding for each speaker that is learned from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.speaker import Speaker
from minmo.training.errors import TrainingError
from minmo.training.filling import fill
from minmo.training.shar import Clip
from minmo.training.stage import StateDict
from minmo.weights.speakers import DEFAULT

_NAMES = "names"
_FASTEST, _SLOWEST = 100.0, 1.0


class SpeakerTable(nn.Module):
    """Embeddings of speakers by their names, learned with what they condition.

    Names and what is known of each speaker's clips are part of its state.

    Args:
        names: of the speakers, none twice.
        width: channels of an embedding.
    """

    names: Tensor
    seconds: Tensor
    characters: Tensor

    def __init__(self, names: Sequence[str], width: int) -> None:
        super().__init__()
        # Only their directions count: short ones turn as fast as other weights learn.
        self.embeddings = nn.Parameter(F.normalize(torch.randn(len(names), width), dim=-1))
        content = json.dumps(list(names)).encode()
        self.register_buffer(_NAMES, torch.tensor(list(content), dtype=torch.uint8))
        for name in ("seconds", "characters"):
            self.register_buffer(name, torch.zeros(len(names)))
        self._rows = {name: row for row, name in enumerate(names)}

    @classmethod
    def from_state(cls, state: StateDict, width: int) -> Self:
        """The table of a checkpoint.

        Raises:
            TrainingError: its embeddings have another width.
        """
        table = cls(json.loads(bytes(state[_NAMES].tolist())), width)
        fill(table, "speakers", state)
        return table

    @classmethod
    def for_clips(cls, clips: Iterable[Clip], state: StateDict | None, width: int) -> Self:
        """The table of a run.

        Args:
            clips: that it learns from.
            state: of a table to go on from, whose speakers keep their embeddings, or None.
            width: channels of an embedding.

        Raises:
            TrainingError: the earlier embeddings have another width.
        """
        earlier = None if state is None else cls.from_state(state, width)
        known = [] if earlier is None else list(earlier._rows)
        seconds: dict[str, float] = {}
        characters: dict[str, int] = {}
        for clip in clips:
            seconds[clip.speaker] = seconds.get(clip.speaker, 0) + clip.seconds
            characters[clip.speaker] = characters.get(clip.speaker, 0) + len(clip.text)
        table = cls([*known, *sorted(seconds.keys() - set(known))], width)
        if earlier is not None:
            table.embeddings.data[: len(known)] = earlier.embeddings.data
        for name, row in table._rows.items():
            table.seconds[row] = seconds.get(name, 0)
            table.characters[row] = characters.get(name, 0)
        return table

    def forward(self, names: Sequence[str]) -> Tensor:
        """`[names, width]`, for a name that is not in it the mean of all."""
        everyone = torch.cat((self.embeddings, self.embeddings.mean(0, keepdim=True)))
        rows = [self._rows.get(name, len(self._rows)) for name in names]
        return everyone[torch.tensor(rows, device=everyone.device)]

    def speaker(self, name: str = "") -> Speaker:
        """A speaker as the product's default one.

        Args:
            name: in the table; empty for the one with most clips, in seconds.

        Raises:
            TrainingError: it is not in the table.
        """
        if name and name not in self._rows:
            known = ", ".join(sorted(self._rows)[:20])
            raise TrainingError(f"options.speaker is {name!r}; learned from were: {known}")
        row = self._rows[name] if name else int(self.seconds.argmax())
        rate = float(self.characters[row] / self.seconds[row].clamp(min=1e-3))
        embedding = self.embeddings.detach()[row].float().cpu()
        return Speaker(DEFAULT, embedding, None, min(_FASTEST, max(_SLOWEST, rate)))
