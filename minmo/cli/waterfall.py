"""A turn's waterfall, drawn."""

from __future__ import annotations

from rich.table import Table

from minmo.bench.latency import after_decision_ms
from minmo.client.talk import TalkTurn

_BAR_COLUMNS = 32


def waterfall(turn: TalkTurn) -> Table:
    """Table with a bar for each hop, on one scale of time."""
    spans = [(span.hop, span.start_ms, span.duration_ms) for span in turn.waterfall]
    if turn.network_ms is not None:
        spans.append(("network", turn.server_first_audio_ms, turn.network_ms))
    longest = max((start + duration for _, start, duration in spans), default=1.0)
    table = Table("hop", box=None, header_style="dim", pad_edge=False)
    table.add_column("from", justify="right")
    table.add_column("took", justify="right")
    table.add_column("", no_wrap=True)
    for hop, start, duration in spans:
        table.add_row(
            hop, f"{start:.0f} ms", f"{duration:.0f} ms", _bar(start, duration, max(longest, 1.0))
        )
    return table


def summary(turn: TalkTurn) -> str:
    """The turn's figures in one line."""
    words = []
    if turn.first_audio_ms is not None:
        words.append(f"first audio {turn.first_audio_ms:.0f} ms after your last word")
    listening = after_decision_ms(turn)
    if listening is not None:
        words.append(f"first token {listening:.0f} ms after the turn was over")
    if turn.tokens_per_second is not None:
        words.append(f"{turn.token_count} tokens at {turn.tokens_per_second:.0f}/s")
    if turn.audio_ms:
        factor = turn.voice_compute_ms / turn.audio_ms
        words.append(f"{turn.audio_ms / 1000:.1f} s of speech, real-time factor {factor:.2f}")
    if turn.outcome != "completed":
        words.append(turn.outcome)
    return " · ".join(words)


def _bar(start: float, duration: float, longest: float) -> str:
    scale = _BAR_COLUMNS / longest
    before = round(max(0.0, start) * scale)
    length = max(1, round(duration * scale)) if duration > 0 else 0
    return " " * before + "█" * length
