"""Write `docs/metrics.md` from `minmo.rpc.metrics`: ``python tools/metrics_page.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from minmo.rpc import metrics
from minmo.rpc.catalogue import Exporter, Named

PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"
BEGIN = "<!-- made by tools/metrics_page.py from minmo/rpc/metrics.py -->"
END = "<!-- end of what tools/metrics_page.py made -->"
_TITLES: dict[Exporter, str] = {
    "gateway": "Gateway",
    "orchestrator": "Orchestrator",
    "encoder": "Encoder",
    "llm": "LLM service",
    "voice_decoder": "Voice decoder",
    "triton": "Triton",
}


def tables() -> str:
    """The tables, in Markdown."""
    return "\n".join(_tables())


def page(text: str) -> str:
    """The page with its tables made anew; `text` is the page as it is."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def _tables() -> Iterator[str]:
    yield "## Of several processes\n"
    yield from _table([named for named in metrics.METRICS.values() if _is_shared(named)])
    for exporter, title in _TITLES.items():
        yield f"## {title}\n"
        yield from _table(
            [
                named
                for named in metrics.METRICS.values()
                if exporter in named.exporters and not _is_shared(named)
            ]
        )
    yield "## What libraries and Triton export by themselves\n"
    yield "| metric | exported by | what |"
    yield "| --- | --- | --- |"
    for name, (exporters, text) in metrics.FOREIGN.items():
        yield f"| `{name}` | {_processes(exporters)} | {text} |"
    yield ""


def _is_shared(named: Named) -> bool:
    return len(named.exporters) > 1


def _table(shown: list[Named]) -> Iterator[str]:
    shared = any(_is_shared(named) for named in shown)
    yield f"| metric | kind |{' exported by |' if shared else ''} what |"
    yield f"| --- | --- |{' --- |' if shared else ''} --- |"
    for named in shown:
        by = f" {_processes(named.exporters)} |" if shared else ""
        yield f"| {_name(named)} | {named.kind} |{by} {_what(named)} |"
    yield ""


def _name(named: Named) -> str:
    labels = f"{{{', '.join(named.labels)}}}" if named.labels else ""
    return f"`{named.name}{labels}`"


def _what(named: Named) -> str:
    parts = [named.text]
    for label, values in named.labels.items():
        said = values if isinstance(values, str) else ", ".join(f"`{value}`" for value in values)
        parts.append(f"`{label}`: {said}.")
    if named.buckets:
        bounds = ", ".join(f"{bound:g}" for bound in named.buckets)
        parts.append(f"Buckets up to {bounds}.")
    return " ".join(parts)


def _processes(exporters: tuple[Exporter, ...]) -> str:
    alone = [name for name in exporters if name != "triton"]
    if len(alone) == len(_TITLES) - 1:
        return "all services" if "triton" not in exporters else "all"
    return ", ".join(exporters)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    print(f"wrote {PAGE}")
