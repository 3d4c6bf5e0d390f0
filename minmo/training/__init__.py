"""Training: the data that it needs, its stages, and what they share."""
