"""The voice decoder as a service."""
