"""Through the frozen LLM: hearing a turn, it is to say what it says when it reads it.

The LLM answers the true text greedily; that answer is read to it twice, behind the text and behind
what was heard, and its predictions are to be alike (knowledge distillation, Hinton et al., 2015,
from the same network with other inputs).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minmo.engine.prompt import ChatFormat
from minmo.model.llm import Llm, LlmCache, Segment
from minmo.model.token_loss import IGNORED
from minmo.training.listening import ReadRows, SpokenTurn, heard_turns

_REMEMBERED = 100_000


class OwnAnswers(nn.Module):
    """The loss of a batch of turns.

    Args:
        llm: frozen.
        folder: with its tokenizer.
        tokens: of an answer, at most, the end of its turn among them.
        system_prompt: who it is told it is; empty for nothing.
    """

    def __init__(self, llm: Llm, folder: Path, tokens: int, system_prompt: str) -> None:
        super().__init__()
        self.llm = llm.requires_grad_(False).eval()
        self._chat = chat = ChatFormat.from_folder(folder)
        self._tokens = tokens
        self._before = list(chat.role_start("user"))
        if system_prompt:
            system = [*chat.role_start("system"), *chat.text(system_prompt), *chat.turn_end()]
            self._before = [*system, *self._before]
        self._after = [*chat.turn_end(), *chat.role_start("assistant")]
        self._known: dict[str, list[int]] = {}

    def forward(self, rows: ReadRows, texts: Sequence[str]) -> Tensor:
        """How far predictions are from those of the text, in nats a token.

        Args:
            rows: what was heard.
            texts: what was said.
        """
        answers = self.answers(texts)
        turns = [SpokenTurn(self._before, self._after, answer) for answer in answers]
        heard = heard_turns(self.llm, rows, turns)
        student = self._predictions(heard.embeddings, heard.lengths, heard.targets)
        with torch.no_grad():
            teacher = self._of_text(texts, answers)
        return F.kl_div(student, teacher, log_target=True, reduction="batchmean")

    @torch.no_grad()
    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """What the LLM says to each text, by greedy decoding; kept for the next time."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            if len(self._known) > _REMEMBERED:
                self._known.clear()
                new = list(dict.fromkeys(texts))
            self._known |= dict(zip(new, self._say(new), strict=True))
        return [self._known[text] for text in texts]

    def _say(self, texts: Sequence[str]) -> list[list[int]]:
        llm, device = self.llm, self.llm.device
        prompts = [[*self._before, *self._chat.text(text), *self._after] for text in texts]
        lengths = [len(prompt) for prompt in prompts]
        cache = LlmCache(llm.config, len(prompts), max(lengths) + self._tokens, llm.dtype, device)
        rows = torch.tensor([token for prompt in prompts for token in prompt], device=device)
        segments = [Segment(slot, 0, length) for slot, length in enumerate(lengths)]
        llm(llm.embed(rows), segments, cache)
        slots = torch.arange(len(prompts), device=device)
        positions = torch.tensor(lengths, device=device)
        said: list[list[int]] = [[] for _ in prompts]
        open_turns = set(range(len(prompts)))
        for _ in range(self._tokens):
            tokens = llm.logits(cache.hidden[slots, positions - 1]).argmax(-1)
            for slot in list(open_turns):
                said[slot].append(int(tokens[slot]))
                if said[slot][-1] == self._chat.end_token:
                    open_turns.remove(slot)
            if not open_turns:
                break
            llm.decode(llm.embed(tokens), slots, positions, cache, int(positions.max()) + 1)
            positions = positions + 1
        return said

    def _of_text(self, texts: Sequence[str], answers: Sequence[list[int]]) -> Tensor:
        tokens, targets = [], []
        for text, answer in zip(texts, answers, strict=True):
            row = [*self._before, *self._chat.text(text), *self._after, *answer[:-1]]
            tokens.append(torch.tensor(row))
            targets.append(torch.full((len(row),), IGNORED))
            targets[-1][len(row) - len(answer) :] = torch.tensor(answer)
        lengths = torch.tensor([len(row) for row in tokens], device=self.llm.device)
        padded = nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(self.llm.device)
        wanted = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORED)
        embeddings = self.llm.embed(padded.flatten()).view(*padded.shape, -1)
        return self._predictions(embeddings, lengths, wanted.to(self.llm.device))

    def _predictions(self, embeddings: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        """Log probabilities `[answer tokens, vocabulary]`, where there are targets."""
        hidden = self.llm.forward_sequence(embeddings.to(self.llm.dtype), lengths)
        return self.llm.logits(hidden[targets != IGNORED]).log_softmax(-1)
