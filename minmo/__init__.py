"""MinMo: a full-duplex voice assistant (arXiv 2501.06282)."""
