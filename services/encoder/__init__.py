"""The voice encoder as a service."""
