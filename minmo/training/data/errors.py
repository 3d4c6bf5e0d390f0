"""What can go wrong with data, in words that say how to go on."""

from __future__ import annotations


class DataError(Exception):
    """Data cannot be made or read; the message says why and what to do."""
