"""Silero's voice activity detector is used as it is published: an ONNX graph."""

import shutil
from pathlib import Path

FILE = "silero_vad.onnx"


def copy(onnx_file: Path, folder: Path) -> None:
    """Copy the graph (8 and 16 kHz) into an existing folder as `silero_vad.onnx`."""
    shutil.copyfile(onnx_file, folder / FILE)
