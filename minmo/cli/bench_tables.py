"""What `minmo bench` prints for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from minmo.bench.latency import LatencyResult


def latency_table(result: LatencyResult) -> None:
    """Prints the figures of `minmo bench latency`."""
    table = Table("figure", box=None, header_style="dim")
    table.add_column("value", justify="right")
    table.add_row(
        f"first audio, median of {len(result.first_audio_ms)}", f"{result.median_ms:.0f} ms"
    )
    table.add_row("first audio, 95th percentile", f"{result.p95_ms:.0f} ms")
    if result.first_token_median_ms is not None:
        table.add_row("listening to first token, median", f"{result.first_token_median_ms:.0f} ms")
    for hop, milliseconds in result.hops_ms.items():
        table.add_row(f"  {hop}, median", f"{milliseconds:.0f} ms")
    if result.tokens_per_second is not None:
        table.add_row("tokens per second, median", f"{result.tokens_per_second:.1f}")
    if result.memory_bytes is not None:
        table.add_row("memory of the stack (PSS)", f"{result.memory_bytes / 1e6:.0f} MB")
        for name, size in sorted(result.memory_by_process.items(), key=lambda pair: -pair[1]):
            table.add_row(f"  {name}", f"{size / 1e6:.0f} MB")
    console = Console(highlight=False)
    console.print(table)
    for failure in result.failures:
        console.print(f"no answer: {failure}", markup=False)
