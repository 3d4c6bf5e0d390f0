"""The conversation as a service: MinMo's public API."""
