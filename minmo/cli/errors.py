"""What the command line says when something goes wrong: one line and no traceback.

Exit statuses: 1 it failed, 2 wrong usage or input that cannot be used, 3 nothing was said, 130
Ctrl-C.
"""

from __future__ import annotations

import sys

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_NOTHING_SAID = 3
EXIT_INTERRUPTED = 130


class InputError(Exception):
    """An argument cannot be used; the text says why and what would do."""


def explain(error: Exception) -> tuple[str, int] | None:
    """What to print and the exit status; None for an error that is a fault of MinMo's."""
    from minmo.audio.pcm import AudioError
    from minmo.client.errors import ClientError, NothingSaidError, RecordingError
    from minmo.rpc.errors import StatusError
    from minmo.settings import SettingsError
    from minmo.stack.errors import StackError
    from minmo.weights.errors import WeightsError

    message = str(error)
    match error:
        case NothingSaidError():
            return message, EXIT_NOTHING_SAID
        case InputError() | RecordingError() | AudioError() | SettingsError():
            return message, EXIT_BAD_INPUT
        case ClientError() | StackError() | WeightsError():
            return message, EXIT_FAILED
        case StatusError():
            return _status(error), EXIT_FAILED
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return f"{where}{error.strerror or message}", EXIT_FAILED
        case _:
            return (message, EXIT_BAD_INPUT) if _is_of_a_preset(error) else None


def _is_of_a_preset(error: Exception) -> bool:
    # Importing them takes PyTorch; who raised one has done so already.
    presets = sys.modules.get("minmo.presets")
    return presets is not None and isinstance(error, presets.PresetError)


def _status(error: Exception) -> str:
    from minmo.rpc.errors import StatusError

    assert isinstance(error, StatusError)
    limit = error.metadata.get("limit", "")
    suffix = f" (limit: {limit})" if limit and limit not in error.message else ""
    return f"the server says {error.code.name}: {error.message}{suffix}"
