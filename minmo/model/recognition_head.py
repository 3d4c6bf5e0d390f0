"""The recognition head: the user's words from speech embeddings, for people to read.

Connectionist temporal classification (Graves et al., 2006) over the LLM's own vocabulary: a speech
embedding is compared with the rows of the LLM's embedding table, which stays frozen, so that little
is trained and embeddings are drawn to what the LLM reads anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.streaming import SlotState, is_there


@dataclass(frozen=True)
class RecognitionHeadConfig:
    """Sizes of the recognition head, which follow from the LLM's.

    Attributes:
        vocabulary_size: rows of the LLM's embedding table.
        width: channels of them, and of a speech embedding.
        pieces: how many of the rows may be recognised.
    """

    vocabulary_size: int
    width: int
    pieces: int


class Pieces(NamedTuple):
    """Pieces of text that were recognised.

    Attributes:
        tokens: `[slots, frames]`, the LLM's token ids.
        frames: `[slots, frames]`, the frame of its stream in which each was first heard.
        counts: `[slots]`, how many of them are there.
    """

    tokens: Tensor
    frames: Tensor
    counts: Tensor


@dataclass
class RecognitionState(SlotState):
    """What greedy decoding remembers of each stream.

    Attributes:
        position: `[slots]`, frames read so far.
        last: `[slots]`, one more than the class of the last frame.
    """

    position: Tensor
    last: Tensor


class RecognitionHead(nn.Module):
    """Log probabilities of a vocabulary's pieces and of the blank.

    Class i is piece i; the last class is the blank.

    Args:
        table: `[vocabulary, width]`, the LLM's embedding table; kept as it is, not trained, not
            part of the state dict.
        pieces: `[count]`, int64, token ids that may be recognised, each once; all if None, and
            then the table's memory is shared.
    """

    pieces: Tensor
    rows: Tensor
    row_scales: Tensor

    def __init__(self, table: Tensor, pieces: Tensor | None = None) -> None:
        super().__init__()
        vocabulary, width = table.shape
        if pieces is None:
            rows, pieces = table, torch.arange(vocabulary, device=table.device)
        else:
            rows = table.index_select(0, pieces)
        self.width = width
        self.blank = len(rows)
        self.register_buffer("pieces", pieces)
        self.register_buffer("rows", rows.detach(), persistent=False)
        # Rows differ in length by how rare a token is, which says nothing about its sound.
        scales = torch.empty(self.blank, device=table.device)
        if not table.is_meta:  # there is nothing to measure there, and it takes seconds of imports
            lengths = torch.linalg.vector_norm(self.rows, dim=-1, dtype=torch.float32)
            scales = lengths.clamp(min=1e-6).reciprocal()
        self.register_buffer("row_scales", scales, persistent=False)
        self.norm = nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.ones(()))
        self.blank_row = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(self.blank + 1))

    def forward(self, embeddings: Tensor) -> Tensor:
        """`[batch, frames, width]` to log probabilities `[batch, frames, pieces + 1]`, float32."""
        return self._scores(embeddings).log_softmax(-1)

    def classes(self, tokens: Tensor) -> Tensor:
        """Classes of token ids, in any shape; the targets of `recognition_loss`.

        Raises:
            ValueError: a token is none of the pieces.
        """
        order = self.pieces.argsort()
        found = torch.searchsorted(self.pieces[order], tokens.contiguous())
        classes = order[found.clamp(max=self.blank - 1)]
        strange = tokens[self.pieces[classes] != tokens]
        if len(strange):
            raise ValueError(
                f"token {int(strange[0])} is not among the {self.blank} pieces that the "
                "recognition head knows: leave it out of the text, or add it to the pieces"
            )
        return classes

    def initial_state(
        self, slots: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> RecognitionState:
        """The state of streams that start; indices have a type of their own, whatever `dtype`."""
        nothing = torch.zeros(slots, device=device, dtype=torch.int64)
        return RecognitionState(nothing, nothing.clone())

    def step(self, embeddings: Tensor, lengths: Tensor, state: RecognitionState) -> Pieces:
        """Greedy decoding of the next frames of each stream.

        A piece is given with the first frame of its run, so text never waits and is never taken
        back; a run that goes on in the next chunk is not given again.

        Args:
            embeddings: `[slots, frames, width]`.
            lengths: `[slots]`, how many of them are there.
            state: changed in place.

        Returns:
            Room for as many pieces as frames.
        """
        # The normaliser of a frame is the same for all classes: scores are enough here.
        best = self._scores(embeddings).argmax(-1)
        frames = best.shape[1]
        codes = torch.cat((state.last[:, None], best + 1), dim=1)
        starts = (codes[:, 1:] != codes[:, :-1]) & (best != self.blank)
        starts &= is_there(lengths, frames)
        order = (~starts).to(torch.int8).argsort(dim=1, stable=True)
        heard = best.gather(1, order).clamp(max=self.blank - 1)
        numbers = state.position[:, None] + order
        state.last.copy_(codes.gather(1, lengths[:, None])[:, 0])
        state.position.add_(lengths)
        return Pieces(self.pieces[heard], numbers, starts.sum(1))

    def decode(self, embeddings: Tensor, lengths: Tensor | None = None) -> list[list[int]]:
        """Token ids of whole clips, by greedy decoding.

        Args:
            embeddings: `[batch, frames, width]`.
            lengths: `[batch]`, how many frames of each clip are there; all if None.
        """
        batch, frames, _ = embeddings.shape
        if lengths is None:
            lengths = torch.full((batch,), frames, device=embeddings.device)
        state = self.initial_state(batch, embeddings.device)
        tokens, _, counts = self.step(embeddings, lengths, state)
        rows = zip(tokens.tolist(), counts.tolist(), strict=True)
        return [row[:count] for row, count in rows]

    def _scores(self, embeddings: Tensor) -> Tensor:
        """Scores `[batch, frames, pieces + 1]`, float32, before they are normalised."""
        normed = self.norm(embeddings)
        found = F.linear(normed.to(self.rows), self.rows).float() * self.row_scales.float()
        blank = F.linear(normed, self.blank_row[None]).float()
        return torch.cat((found * self.scale, blank), dim=-1) + self.bias


def recognition_loss(
    log_probabilities: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor
) -> Tensor:
    """Connectionist temporal classification, per piece, averaged over clips.

    A clip without words should be all blanks. A clip with fewer frames than its words take (one a
    piece, and a blank between two that are alike) cannot be aligned: it counts nothing.

    Args:
        log_probabilities: `[batch, frames, pieces + 1]`, the last class is the blank.
        lengths: `[batch]`, how many frames of each clip are there.
        targets: `[batch, labels]`, classes of each clip's pieces.
        target_lengths: `[batch]`, how many of them are there.

    Returns:
        A scalar; 0 where no clip can be aligned.

    Raises:
        ValueError: a target is the blank or no class, or a length is more than there is.
    """
    blank = log_probabilities.shape[-1] - 1
    _check_lengths(lengths, log_probabilities.shape[1], "frames")
    _check_lengths(target_lengths, targets.shape[1], "labels")
    wanted = is_there(target_lengths, targets.shape[1])
    wrong = targets[wanted & ((targets < 0) | (targets >= blank))]
    if len(wrong):
        raise ValueError(
            f"a target is {int(wrong[0])}: the {blank} pieces are 0 to {blank - 1}, "
            f"and {blank} is the blank"
        )
    alike = (targets[:, 1:] == targets[:, :-1]) & wanted[:, 1:]
    fits = (lengths >= target_lengths + alike.sum(1)) & (lengths > 0)
    # What does not fit is replaced by an empty clip's worth, whose loss is then left out.
    losses = F.ctc_loss(
        log_probabilities.transpose(0, 1),
        targets.where(wanted, 0),
        lengths.where(fits, log_probabilities.shape[1]),
        target_lengths.where(fits, 0),
        blank=blank,
        reduction="none",
    )
    per_piece = losses / target_lengths.clamp(min=1)
    return per_piece.where(fits, 0).sum() / fits.sum().clamp(min=1)


def _check_lengths(lengths: Tensor, most: int, what: str) -> None:
    wrong = lengths[(lengths < 0) | (lengths > most)]
    if len(wrong):
        raise ValueError(f"a length is {int(wrong[0])}: there are 0 to {most} {what}")
