"""The recognition head: which piece of text is heard in a speech embedding.

Connectionist temporal classification (Graves et al., 2006) over pieces of the LLM's vocabulary. It
has two uses: the user's words for people to read, and what the LLM reads. The rows of the LLM's
embedding table, weighted by how likely each piece is, lie where the LLM expects text, and what the
classes don't say, how it was spoken, is added from the speech embedding itself.

A piece is recognised by a key that is made of its spelling, so pieces that training never heard can
be recognised too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.model.spelling import LONGEST_SPELLING, SpellingEncoder
from minmo.model.streaming import SlotState, is_there

_INITIAL_BLANK = 8.0
_CANDIDATES = 8
"""Pieces that a mixture is made of: the likeliest; the rest of a vocabulary weighs next to
nothing."""

_TOGETHER = 1024
"""Pieces whose keys are made at once for inference: a vocabulary's would take a lot of memory."""


@dataclass(frozen=True)
class RecognitionHeadConfig:
    """Sizes of the recognition head; width and vocabulary follow from the LLM's.

    Attributes:
        vocabulary_size: rows of the LLM's embedding table.
        width: channels of them, and of a speech embedding.
        pieces: how many of the rows may be recognised.
        spelling_width: inner channels of what makes keys of spellings.
        key_width: channels of a key.
    """

    vocabulary_size: int
    width: int
    pieces: int
    spelling_width: int = 128
    key_width: int = 192


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
    """Log probabilities of a vocabulary's pieces and of the blank, and mixtures of its rows.

    Class i is piece i; the last class is the blank.

    Args:
        config: its sizes.
        rows: `[pieces, width]`, the pieces' rows of the LLM's embedding table; kept as they are,
            not trained, not part of the state dict.
        pieces: `[pieces]`, int64, their token ids, each once; 0, 1, ... if None.
        spellings: `[pieces, LONGEST_SPELLING]`, uint8, of `spellings_of`; zeros if None.
    """

    pieces: Tensor
    spellings: Tensor
    rows: Tensor

    def __init__(
        self,
        config: RecognitionHeadConfig,
        rows: Tensor,
        pieces: Tensor | None = None,
        spellings: Tensor | None = None,
    ) -> None:
        super().__init__()
        count, width = rows.shape
        if (count, width) != (config.pieces, config.width):
            raise ValueError(
                f"rows are {count} x {width}; the head has {config.pieces} pieces of width "
                f"{config.width}"
            )
        if pieces is None:
            pieces = torch.arange(count, device=rows.device)
        if spellings is None:
            shape = (count, LONGEST_SPELLING)
            spellings = torch.zeros(shape, dtype=torch.uint8, device=rows.device)
        self.config = config
        self.blank = count
        self.register_buffer("pieces", pieces)
        self.register_buffer("spellings", spellings)
        self.register_buffer("rows", rows.detach(), persistent=False)
        self.norm = nn.LayerNorm(width)
        self.query_proj = nn.Linear(width, config.key_width)
        self.spelling = SpellingEncoder(config.spelling_width, config.key_width)
        self.key_norm = nn.LayerNorm(config.key_width)
        self.bias = nn.Parameter(torch.zeros(count))
        self.blank_proj = nn.Linear(width, 1)
        # Most of a clip holds no piece.
        nn.init.constant_(self.blank_proj.bias, _INITIAL_BLANK)
        # How it was spoken comes to what was said as training finds it useful.
        self.residual_scale = nn.Parameter(torch.full((width,), 1e-3))
        self._kept_keys: Tensor | None = None

    @property
    def width(self) -> int:
        """Channels of a speech embedding."""
        return self.config.width

    def forward(
        self, embeddings: Tensor, classes: Tensor | None = None, offsets: Tensor | None = None
    ) -> Tensor:
        """Log probabilities of what is heard in each embedding.

        Args:
            embeddings: `[batch, frames, width]`.
            classes: `[n]`, the only pieces to compare with, as training does: a vocabulary has
                many more than a batch of clips, and a sample of the others stands for them.
            offsets: `[n]`, added to the scores of these pieces; none if None.

        Returns:
            `[batch, frames, pieces + 1]`, or `[batch, frames, n + 1]`, float32; the last is the
            blank.
        """
        scores = self._scores(embeddings, classes)
        if offsets is not None:
            # The blank is always among them.
            scores = scores + F.pad(offsets, (0, 1))
        return scores.log_softmax(-1)

    def mixtures(
        self, embeddings: Tensor, log_probabilities: Tensor, classes: Tensor | None = None
    ) -> Tensor:
        """What the LLM reads for each embedding, if it holds a piece at all.

        Args:
            embeddings: `[batch, frames, width]`.
            log_probabilities: what `forward` gave of them.
            classes: that `forward` was given.

        Returns:
            `[batch, frames, width]`: the rows of the likeliest pieces, weighted, and a share of
            the embedding.
        """
        heard = log_probabilities[..., :-1]
        best, places = heard.topk(min(_CANDIDATES, heard.shape[-1]), dim=-1)
        numbers = places if classes is None else classes[places]
        weights = best.softmax(-1).to(self.rows.dtype)
        words = (weights[..., None] * self.rows[numbers]).sum(-2)
        mixed: Tensor = words + self.sound(embeddings)
        return mixed

    def sound(self, embeddings: Tensor) -> Tensor:
        """The share of speech embeddings that the LLM reads beside the pieces: how it is spoken.

        Args:
            embeddings: `[..., width]`.

        Returns:
            The same shape.
        """
        share: Tensor = self.residual_scale * self.norm(embeddings)
        return share

    def as_large_as_text(self, embeddings: Tensor) -> Tensor:
        """Embeddings with the root mean square of the table's rows: what the LLM was trained to
        read; as they come they are several times that.

        Args:
            embeddings: `[batch, frames, width]`.

        Returns:
            The same shape.
        """
        normed: Tensor = self.norm(embeddings)
        return normed * self._text_size

    @cached_property
    def _text_size(self) -> float:
        return float(self.rows.float().square().mean().sqrt())

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

    def _scores(self, embeddings: Tensor, classes: Tensor | None = None) -> Tensor:
        """Scores `[batch, frames, classes + 1]`, float32, before they are normalised."""
        normed = self.norm(embeddings)
        bias = self.bias if classes is None else self.bias[classes]
        # The mean over a key's channels, not their sum: a step of training that moves all of them
        # one way would move a sum by hundreds.
        query = self.query_proj(normed) / self.config.key_width
        found = F.linear(query, self._keys(classes), bias)
        return torch.cat((found, self.blank_proj(normed)), dim=-1).float()

    def _keys(self, classes: Tensor | None) -> Tensor:
        """Keys of pieces, `[pieces, key_width]`; once they no longer change they are kept."""
        frozen = not self.training and not self.bias.requires_grad
        if frozen and self._kept_keys is not None:
            return self._kept_keys if classes is None else self._kept_keys[classes]
        if frozen and classes is None:
            # Gradients must still pass to embeddings, which no tensor of inference mode allows.
            with torch.inference_mode(False), torch.no_grad():
                self._kept_keys = self._all_keys()
            return self._kept_keys
        return self._made_keys(self.spellings if classes is None else self.spellings[classes])

    def _all_keys(self) -> Tensor:
        """Keys of all pieces; those of like length together, which spares most of the work."""
        order = (self.spellings > 0).sum(1).argsort()
        parts = [self._made_keys(self.spellings[part]) for part in torch.split(order, _TOGETHER)]
        sorted_keys = torch.cat(parts)
        return torch.empty_like(sorted_keys).index_copy_(0, order, sorted_keys)

    def _made_keys(self, spellings: Tensor) -> Tensor:
        keys: Tensor = self.key_norm(self.spelling(spellings))
        return keys

    def train(self, mode: bool = True) -> Self:
        """Sets the module to training or to inference; what was kept is of older weights."""
        self._kept_keys = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves or casts it: kept keys are where, and of the type, that it was before."""
        self._kept_keys = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Loads weights, of which kept keys are not made."""
        self._kept_keys = None
        super()._load_from_state_dict(*args, **kwargs)


def recognition_loss(
    log_probabilities: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor
) -> Tensor:
    """Connectionist temporal classification, per piece of the whole batch.

    A mean over clips would give the one word of a short clip, among all its blanks, the weight of
    ten words of a long one.

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
    return losses.where(fits, 0).sum() / target_lengths.where(fits, 0).sum().clamp(min=1)


def _check_lengths(lengths: Tensor, most: int, what: str) -> None:
    wrong = lengths[(lengths < 0) | (lengths > most)]
    if len(wrong):
        raise ValueError(f"a length is {int(wrong[0])}: there are 0 to {most} {what}")
