"""Where Prometheus finds the metrics of a stack: a file of targets for its `file_sd_configs`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from minmo.stack.replicas import kind_of


def write(path: Path, metrics_urls: Mapping[str, str], prefix: str = "") -> None:
    """Writes the targets in one step: Prometheus, which watches the file, sees the old ones or all.

    A target's `job` is its service, as in ``voice-decoder``; its `instance` is the process, so that
    it is the same one after a restart on other ports.

    Args:
        path: the file, whose name ends with ``.json``.
        metrics_urls: URLs of the processes' metrics, by name.
        prefix: of the instances, to tell this stack from another on the machine.

    Raises:
        OSError: it cannot be written.
    """
    groups = [
        {
            "targets": [urlsplit(url).netloc],
            "labels": {"job": kind_of(name).replace("_", "-"), "instance": f"{prefix}{name}"},
        }
        for name, url in metrics_urls.items()
    ]
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(json.dumps(groups, indent=2) + "\n")
    unfinished.replace(path)
