"""What making a bundle raises."""

from __future__ import annotations

from minmo.training.errors import TrainingError


class BundleError(TrainingError):
    """A bundle cannot be made or joined; the text says what was wrong, the limit and the fix."""
