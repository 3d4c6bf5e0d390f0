"""What training raises when something is wrong with what it was given."""

from __future__ import annotations


class TrainingError(Exception):
    """Training cannot go on; the text says what was wrong, the limit and the fix."""
