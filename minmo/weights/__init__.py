"""Pretrained weights: fetched from packages, converted once to safetensors, loaded in a moment.

`ensure` prepares what a preset needs; `weights_folder`, `read_config` and `load_state_dict` load.
Whole modules are loaded and written by `minmo.weights.modules`; what others published is imported
by `minmo.weights.importing`.
"""

from minmo.weights.errors import WeightsError
from minmo.weights.load import load_state_dict, read_config, weights_folder
from minmo.weights.prepare import ensure
from minmo.weights.progress import NoProgress, Progress, shown_on

__all__ = [
    "NoProgress",
    "Progress",
    "WeightsError",
    "ensure",
    "load_state_dict",
    "read_config",
    "shown_on",
    "weights_folder",
]
