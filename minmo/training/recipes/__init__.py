"""Recipes of training runs, as YAML: `minmo train speech-to-text --recipe NAME`."""
