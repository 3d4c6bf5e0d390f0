"""Batched streaming synthesis: semantic vectors to speech tokens to audio, for many utterances."""
