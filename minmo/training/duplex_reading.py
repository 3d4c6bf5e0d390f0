"""What the frozen LLM makes of a scene: the hidden states that the predictor decides on.

In a conversation the LLM reads the pieces heard, and at every step a probe, which is forgotten at
once; a branch listens while the assistant speaks. Here all of it is read in one forward: what
branches share stands there once, a probe sees what was committed before it, and nothing sees a
probe (`Llm.forward_tree`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minmo.engine.ears import Ears
from minmo.engine.listening import Schedule
from minmo.engine.prompt import ChatFormat
from minmo.model.llm import Llm
from minmo.model.probing import STEP_EMBEDDINGS, probes
from minmo.training.augmentation import Samples
from minmo.training.data.duplex_scenes import Scene
from minmo.training.duplex_gate import Gate, Segment, segments_of
from minmo.training.shar import SAMPLE_RATE


class Step(NamedTuple):
    """What a step of a segment gives.

    Attributes:
        pieces: `[pieces, width]`, embeddings of those that are over.
        probe: `[width]`.
        seconds: of the segment, at the end of the step.
    """

    pieces: Tensor
    probe: Tensor
    seconds: float


class SceneStates(NamedTuple):
    """Hidden states of a scene.

    Attributes:
        hidden: `[rows, width]`, of every position that was committed and of every probe.
        times: `[rows]`, seconds of the scene heard at a probe; NaN for what was committed.
        branches: for each branch in which the predictor was asked, the numbers of its rows
            `[positions]`, int64, in the order in which they were made.
    """

    hidden: Tensor
    times: Tensor
    branches: tuple[Tensor, ...]


class Branch:
    """A branch of what the LLM reads.

    Attributes:
        committed: rows that are kept, from the first one on.
        made: all rows in the order in which they were made, probes among them.
    """

    def __init__(self, committed: Sequence[int] = ()) -> None:
        self.committed = list(committed)
        self.made = list(committed)


class Tree:
    """Rows that the LLM reads at once, on branches that share their beginnings."""

    def __init__(self, llm: Llm) -> None:
        self._llm = llm
        self._contents: list[Tensor] = []
        self._parents: list[int] = []
        self._times: list[float] = []

    def tokens(self, branch: Branch, ids: Sequence[int]) -> None:
        """Commits tokens."""
        if ids:
            rows = self._llm.embed(torch.tensor(list(ids), device=self._llm.device))
            self.embeddings(branch, rows)

    def embeddings(self, branch: Branch, rows: Tensor) -> None:
        """Commits embeddings `[positions, width]`."""
        for row in rows:
            number = self._add(branch, row, math.nan)
            branch.committed.append(number)

    def probe(self, branch: Branch, embedding: Tensor, seconds: float) -> None:
        """Reads a probe `[width]`, which nothing sees."""
        self._add(branch, embedding, seconds)

    def _add(self, branch: Branch, content: Tensor, seconds: float) -> int:
        number = len(self._contents)
        self._contents.append(content.to(self._llm.dtype))
        self._parents.append(branch.committed[-1] if branch.committed else -1)
        self._times.append(seconds)
        branch.made.append(number)
        return number

    @property
    def times(self) -> Tensor:
        """`[rows]`, of each probe; NaN for what was committed."""
        return torch.tensor(self._times)

    def hidden(self) -> Tensor:
        """Last hidden states `[rows, width]`."""
        count, device = len(self._contents), self._llm.device
        seen = torch.eye(count, dtype=torch.bool)
        positions = torch.zeros(count, dtype=torch.int64)
        for row, parent in enumerate(self._parents):
            if parent >= 0:
                seen[row] |= seen[parent]
                positions[row] = positions[parent] + 1
        contents = torch.stack(self._contents)
        batch = (contents[None], positions[None].to(device), seen[None].to(device))
        return self._llm.forward_tree(*batch)[0]


class SceneReader(nn.Module):
    """The frozen listening modules and the frozen LLM.

    Args:
        ears: aligned with the LLM.
        llm: the LLM.
        chat: its format.
        gate: opens segments.
    """

    def __init__(self, ears: Ears, llm: Llm, chat: ChatFormat, gate: Gate) -> None:
        super().__init__()
        self.ears = ears
        self.llm = llm.requires_grad_(False).eval()
        self._chat, self._gate = chat, gate
        self._schedule = Schedule.of(ears.encoder, ears.projector)

    def train(self, mode: bool = True) -> SceneReader:
        """Stays as it is: nothing of it is trained."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, scene: Scene, user: Samples, system_prompt: str = "") -> SceneStates:
        """Reads a scene.

        Args:
            scene: what happens in it.
            user: `[samples]`, the user's channel.
            system_prompt: who the LLM is told it is; empty for nothing.
        """
        segments = segments_of(scene, self._gate(user))
        # Mixed precision is for what learns.
        with torch.autocast(self.llm.device.type, enabled=False):
            heard = [list(self.steps(user[one.start : one.end])) for one in segments]
            tree, branches = self._laid_out(scene, segments, heard, system_prompt)
            asked = [one.made for one in branches if len(one.made) > len(one.committed)]
            hidden = tree.hidden() if asked else torch.zeros(0, self.llm.config.width)
        times = tree.times[: len(hidden)]
        return SceneStates(hidden, times, tuple(torch.tensor(rows) for rows in asked))

    def steps(self, samples: Samples) -> Iterator[Step]:
        """What each step of a segment gives, for all steps that a stream has computed by then.

        Args:
            samples: `[samples]`, of the segment.
        """
        ears, schedule = self.ears, self._schedule
        blocks = schedule.blocks(len(samples))
        if not blocks:
            return
        frames = ears.encoder.forward_causal(torch.from_numpy(samples)[None].to(self.llm.device))
        embeddings = ears.projector(frames)
        lengths = torch.tensor([embeddings.shape[1]], device=embeddings.device)
        probed = probes(ears.head.as_large_as_text(embeddings), lengths).embeddings[0]
        finder, stride = ears.finder(), ears.projector.config.stride
        pieces = embeddings.new_zeros(0, ears.head.width)
        units = given = 0
        for block in range(1, blocks + 1):
            # What a block holds is found when all of it is there, then its steps are probed.
            before, units = units, block * schedule.step // schedule.unit
            whole = frames[:, before * stride : units * stride]
            found = finder.find(whole, embeddings[:, before:units], silent=False)
            pieces = torch.cat((pieces, found.embeddings.to(pieces)))
            while given < units // STEP_EMBEDDINGS:
                end = (given + 1) * STEP_EMBEDDINGS * schedule.unit
                yield Step(pieces, probed[given], end / SAMPLE_RATE)
                pieces, given = pieces[:0], given + 1

    def _laid_out(
        self,
        scene: Scene,
        segments: Sequence[Segment],
        heard: Sequence[Sequence[Step]],
        system_prompt: str,
    ) -> tuple[Tree, list[Branch]]:
        """All that is read, and the branches that there were."""
        talk = _Talk(Tree(self.llm), self._chat, system_prompt, scene)
        for segment, steps in zip(segments, heard, strict=True):
            talk.assistant_until(segment.noticed / SAMPLE_RATE)
            branch = talk.listening(segment)
            for step in steps:
                talk.tree.embeddings(branch, step.pieces)
                seconds = segment.start / SAMPLE_RATE + step.seconds
                talk.tree.probe(branch, step.probe, seconds)
        return talk.tree, talk.branches


class _Talk:
    """Lays out a conversation as the orchestrator does (aligned mode)."""

    def __init__(self, tree: Tree, chat: ChatFormat, system_prompt: str, scene: Scene) -> None:
        self.tree, self._chat, self._scene = tree, chat, scene
        self._main = Branch()
        self.branches = [self._main]
        self._answers = 0
        # Where the user's words before the latest answer end, and where its tokens begin.
        self._content = self._base = 0
        self._tokens: list[int] = []
        self._user_speaks = False
        if system_prompt:
            ids = [*chat.role_start("system"), *chat.text(system_prompt), *chat.turn_end()]
            tree.tokens(self._main, ids)
        if scene.asked:
            self._user_begins(self._main)
            tree.tokens(self._main, chat.text(scene.asked))
            self._user_speaks = True

    def assistant_until(self, seconds: float) -> None:
        """The answers that have begun by then: the LLM writes them far quicker than they sound."""
        chat, turns = self._chat, self._scene.assistant
        while self._answers < len(turns) and turns[self._answers].start <= seconds:
            if not self._user_speaks:
                self._user_begins(self._main)
            self._content = len(self._main.committed)
            self.tree.tokens(self._main, [*chat.turn_end(), *chat.role_start("assistant")])
            self._base = len(self._main.committed)
            self._tokens = chat.text(turns[self._answers].text)
            self.tree.tokens(self._main, self._tokens)
            self._answers, self._user_speaks = self._answers + 1, False

    def listening(self, segment: Segment) -> Branch:
        """The branch that reads a segment, ready for its first piece."""
        if segment.over is None:
            if not self._user_speaks:
                self._user_begins(self._main)
                self._user_speaks = True
            return self._main
        turn = self._scene.assistant[segment.over]
        # No more of an answer is in the history than was heard by then.
        share = (segment.noticed / SAMPLE_RATE - turn.start) / turn.seconds
        heard = min(len(self._tokens), int(share * len(self._tokens)))
        if heard:
            branch = Branch(self._main.committed[: self._base + heard])
            self.tree.tokens(branch, self._chat.interruption())
            self._user_begins(branch)
        else:
            # Nothing was heard yet: the user goes on with the turn before.
            branch = Branch(self._main.committed[: self._content])
        self.branches.append(branch)
        if segment.kept:
            self._main, self._user_speaks = branch, True
        return branch

    def _user_begins(self, branch: Branch) -> None:
        """Closes the answer before, if there was one, and opens a turn of the user."""
        ids = self._chat.turn_end() if self._answers else []
        self.tree.tokens(branch, [*ids, *self._chat.role_start("user")])
