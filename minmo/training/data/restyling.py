"""Speech changed to sound slower or faster, higher or lower, louder or softer.

The work is FFmpeg's: its `atempo` overlaps and adds similar pieces of the waveform (WSOLA, Verhelst
and Roelands, 1993), which leaves pitch and timbre as they were. Pitch is moved by resampling and
bringing the duration back; formants move with it, so a few semitones are as much as sounds like the
same person. Who speaks up does not only sound louder: high frequencies rise more than low ones
(Traunmüller and Eriksson, 2000), so the treble rises by a share more.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import soxr

from minmo.audio.pcm import Samples
from minmo.training.data.errors import DataError
from minmo.training.data.lines import Style

_TREBLE_SHARE, _TREBLE_HZ = 0.3, 2000
_LOUDEST = 0.97


def pitch_factor(style: Style) -> float:
    """How much higher everything becomes, the upper end of the band included."""
    factor: float = 2 ** (style.pitch / 12)
    return factor


def restyle(samples: Samples, rate_hz: int, style: Style) -> Samples:
    """A clip, said in a style.

    Args:
        samples: `[samples]`, as the speaker usually speaks.
        rate_hz: of them, and of what comes out.
        style: how it is to be said. Louder speech is limited softly where it would be clipped.

    Returns:
        About `[samples / style.rate]`.

    Raises:
        DataError: PyAV, which carries FFmpeg, is not installed.
    """
    factor = pitch_factor(style)
    if style.pitch:
        samples = soxr.resample(samples, rate_hz * factor, rate_hz, "HQ")
    filters = []
    if (tempo := style.rate / factor) != 1:
        filters.append(("atempo", f"{tempo:.6f}"))
    if style.loudness:
        filters += [
            ("treble", f"g={_TREBLE_SHARE * style.loudness:.3f}:f={_TREBLE_HZ}"),
            ("volume", f"{style.loudness:.3f}dB"),
        ]
        filters.append(("alimiter", f"limit={_LOUDEST}:level=0:latency=1"))
    return _filtered(samples, rate_hz, filters) if filters else samples


def _filtered(samples: Samples, rate_hz: int, filters: list[tuple[str, str]]) -> Samples:
    try:
        import av
        from av.filter import Graph
    except ImportError as error:
        raise DataError(
            "to change how speech is said needs PyAV: pip install 'minmo[train]'"
        ) from error
    graph, clock = Graph(), Fraction(1, rate_hz)
    given = graph.add_abuffer(format="flt", sample_rate=rate_hz, layout="mono", time_base=clock)
    as_given = ("aformat", f"sample_fmts=flt:channel_layouts=mono:sample_rates={rate_hz}")
    steps = [graph.add(*one) for one in (*filters, as_given)]
    graph.link_nodes(given, *steps, graph.add("abuffersink")).configure()
    whole = np.ascontiguousarray(samples[None], np.float32)
    frame = av.AudioFrame.from_ndarray(whole, format="flt", layout="mono")
    frame.sample_rate, frame.time_base, frame.pts = rate_hz, clock, 0
    graph.push(frame)
    graph.push(None)
    parts = []
    while True:
        try:
            parts.append(graph.pull().to_ndarray()[0])
        except av.EOFError:
            return np.concatenate(parts) if parts else np.zeros(0, np.float32)
