"""Batched streaming inference: slots, caches, schedulers."""
