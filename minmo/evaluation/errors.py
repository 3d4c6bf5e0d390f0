"""What evaluation says when it cannot go on."""

from __future__ import annotations


class EvaluationError(ValueError):
    """A folder, an option or a file of results cannot be used; says why and what would do."""


def needs_extra(package: str) -> EvaluationError:
    """The error for an optional package that is not installed."""
    return EvaluationError(
        f"this needs the package {package}, which is not installed: pip install 'minmo[train]'"
    )
