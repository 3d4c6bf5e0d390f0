"""PromQL as the dashboards write it: every series is chosen by their three variables."""

from __future__ import annotations

from collections.abc import Sequence

CHOSEN = 'namespace=~"$namespace", job=~"$job", instance=~"$instance"'
"""What the variables of a dashboard choose. Without namespaces (compose, a plain host) the label
is empty, which ``.*`` matches too."""
WINDOW = "$__rate_interval"
"""A few scrapes, for lines over time."""
ALL_SHOWN = "$__range"
"""All of the time that is shown, for one value of it."""


def pick(metric: str, where: str = "") -> str:
    """Series of a metric: those that are chosen, and that match `where`."""
    return f"{metric}{{{CHOSEN}{', ' if where else ''}{where}}}"


def rate(metric: str, *by: str, where: str = "", window: str = WINDOW) -> str:
    """A counter's increase in a second, summed by labels."""
    return total(f"rate({pick(metric, where)}[{window}])", by)


def gauge(metric: str, *by: str, where: str = "") -> str:
    """A gauge, summed by labels."""
    return total(pick(metric, where), by)


def total(vector: str, by: Sequence[str] = ()) -> str:
    """Sum of a vector by labels."""
    return f"sum by ({', '.join(by)}) ({vector})" if by else f"sum({vector})"


def quantile(share: float, histogram: str, *by: str, where: str = "", window: str = WINDOW) -> str:
    """A quantile of what a histogram has seen, by labels; nothing where it has seen nothing.

    Args:
        share: 0.95 for the value below which 95 % are.
        histogram: the metric, without ``_bucket``.
        by: labels.
        where: further matchers.
        window: over which time.
    """
    buckets = rate(f"{histogram}_bucket", "le", *by, where=where, window=window)
    # Of nothing the quantile is no number, which would be shown as such.
    return f"histogram_quantile({share:g}, {buckets}) >= 0"


def mean(histogram: str, *by: str, where: str = "") -> str:
    """Mean of what a histogram has seen, by labels."""
    return ratio(
        rate(f"{histogram}_sum", *by, where=where), rate(f"{histogram}_count", *by, where=where)
    )


def ratio(above: str, below: str) -> str:
    """One expression over another; nothing where there is nothing below."""
    return f"{above}\n/\n({below} > 0)"


def or_zero(expression: str, there: str, none: str = "") -> str:
    """An expression, or 0 where it has no series: some counters have none before the first event.

    Args:
        expression: by labels.
        there: what always has a series where the expression may have one.
        none: label that says ``none`` in the series that is 0.
    """
    zero = f"0 * {there}"
    if none:
        zero = f'label_replace({zero}, "{none}", "none", "", "")'
    return f"({expression}\nor\n{zero})"
