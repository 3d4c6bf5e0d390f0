"""How a Triton server that hosts the LLM is started on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import minmo
from minmo.weights import triton

_SOURCE = Path(minmo.__file__).resolve().parent.parent
MODEL_REPOSITORY = _SOURCE / "deploy" / "triton"


def triton_command(
    grpc_port: int,
    http_port: int,
    metrics_port: int,
    *,
    preset: str = "mini",
    threads: int = 1,
    host: str = "127.0.0.1",
    repository: Path = MODEL_REPOSITORY,
) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of a server; the model's other settings are inherited.

    Args:
        grpc_port: where it serves; the other two likewise.
        http_port: health and statistics.
        metrics_port: Prometheus; -1 is off.
        preset: whose LLM.
        threads: that computation may use.
        host: address to listen on.
        repository: folder of models.
    """
    command = [
        str(triton.server_binary()),
        f"--model-repository={repository}",
        f"--backend-directory={triton.backend_folder()}",
        f"--grpc-address={host}",
        f"--grpc-port={grpc_port}",
        f"--http-address={host}",
        f"--http-port={http_port}",
        # Long enough to end what runs, short enough to be waited for.
        "--exit-timeout-secs=2",
        "--log-info=false",
        "--allow-gpu-metrics=false",
    ]
    if metrics_port < 0:
        command.append("--allow-metrics=false")
    else:
        command += [f"--metrics-address={host}", f"--metrics-port={metrics_port}"]
    environment = dict(os.environ)
    # The first Python on the path is the one that runs model.py; PYTHONPATH is ignored.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    environment["LD_LIBRARY_PATH"] = triton.library_path()
    environment["MINMO_SOURCE"] = str(_SOURCE)
    environment["MINMO_LLM_PRESET"] = preset
    environment["MINMO_LLM_THREADS"] = str(threads)
    environment["OMP_NUM_THREADS"] = str(threads)
    # Threads that spin for long while they wait take the cores from the other services; those that
    # do not spin at all cost a fifth of the speed.
    environment.setdefault("GOMP_SPINCOUNT", "20000")
    return command, environment
