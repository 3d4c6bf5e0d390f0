"""PCM, resampling, voice activity."""
