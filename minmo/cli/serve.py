"""`minmo serve`: everything on this machine, until Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minmo.cli.options import MODES_HELP, Json, Mode, Replicas, replicas_of

if TYPE_CHECKING:
    from minmo.stack import Stack


def serve(
    host: Annotated[
        str, typer.Option(envvar="MINMO_HOST", help="Address that the public API listens on.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            envvar="MINMO_PORT",
            min=0,
            max=65535,
            help="Port of the public API; 0 takes a free one. By default 7100, or else a free one.",
        ),
    ] = None,
    web_port: Annotated[
        int | None,
        typer.Option(
            envvar="MINMO_WEB_PORT",
            min=0,
            max=65535,
            help="Port of the page and of OpenAI's Realtime protocol; 0 takes a free one. "
            "By default 8080, or else a free one.",
        ),
    ] = None,
    gateway: Annotated[
        bool,
        typer.Option(
            "--gateway/--no-gateway",
            help="Serve the page and the Realtime protocol. Never with --tls-client-ca.",
        ),
    ] = True,
    mode: Annotated[Mode, typer.Option(envvar="MINMO_MODE", help=MODES_HELP)] = Mode.AUTO,
    preset: Annotated[
        str, typer.Option(envvar="MINMO_PRESET", help="Preset whose modules are used.")
    ] = "mini",
    redis_url: Annotated[
        str | None,
        typer.Option(envvar="MINMO_REDIS_URL", help="External Redis; by default one is started."),
    ] = None,
    triton_address: Annotated[
        str | None,
        typer.Option(
            envvar="MINMO_TRITON_ADDRESS",
            metavar="HOST:PORT",
            help="gRPC address of an external Triton; by default one is started.",
        ),
    ] = None,
    replicas: Replicas = "",
    token: Annotated[
        str | None,
        typer.Option(
            envvar="MINMO_TOKEN",
            help="API token that callers must send. Better given by the environment.",
        ),
    ] = None,
    metrics: Annotated[
        bool, typer.Option("--metrics/--no-metrics", help="Export Prometheus metrics.")
    ] = True,
    prometheus: Annotated[
        Path | None,
        typer.Option(
            envvar="MINMO_PROMETHEUS",
            dir_okay=False,
            metavar="FILE.json",
            help="Write where the metrics are into this file, for Prometheus' file_sd_configs.",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            envvar="MINMO_TLS_CERT",
            exists=True,
            dir_okay=False,
            help="PEM certificate chain of the public API; turns TLS on.",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            envvar="MINMO_TLS_KEY",
            exists=True,
            dir_okay=False,
            help="PEM private key of --tls-cert.",
        ),
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            envvar="MINMO_TLS_CLIENT_CA",
            exists=True,
            dir_okay=False,
            help="PEM CA that must have signed the callers' certificates.",
        ),
    ] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            envvar="MINMO_CA",
            exists=True,
            dir_okay=False,
            help="PEM CA of --tls-cert, for the gateway; by default --tls-cert itself.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Start everything on this machine and keep it running until Ctrl-C.

    Example: minmo serve --port 7100
    """
    from minmo.cli.errors import InputError
    from minmo.cli.reach import run_with_stack
    from minmo.stack import StackConfig

    if (tls_cert is None) != (tls_key is None):
        raise InputError("--tls-cert and --tls-key go together: give both or neither")
    if prometheus is not None and not metrics:
        raise InputError("--prometheus names metrics that --no-metrics turns off: leave one out")
    config = StackConfig(
        preset=preset,
        mode=mode.value,
        host=host,
        port=port,
        web_port=web_port,
        gateway=gateway and tls_client_ca is None,
        metrics=metrics,
        prometheus=prometheus,
        replicas=replicas_of(replicas),
        redis_url=redis_url,
        triton_address=triton_address,
        token=token,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        tls_ca=tls_ca or tls_cert,
    )

    async def work(stack: Stack) -> None:
        if as_json:
            typer.echo(stack.describe().model_dump_json(indent=2))
        else:
            announce(stack)
        raise await stack.failed()

    try:
        run_with_stack(config, work, quiet=as_json)
    except KeyboardInterrupt:
        # How serving ends when all is well.
        if not as_json:
            typer.echo("MinMo has stopped.")


def announce(stack: Stack) -> None:
    """Prints where everything is and how to try it."""
    from rich.console import Console
    from rich.table import Table

    found = stack.describe()
    table = Table("process", "address", "metrics", "pid", box=None, header_style="dim")
    for name, service in found.services.items():
        table.add_row(name, service.address, service.metrics or "", str(service.pid or "external"))
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"MinMo {found.version} talks at [bold]{found.address}[/] (gRPC, {found.mode}).")
    if "gateway" in found.services:
        scheme = "https" if found.tls else "http"
        console.print(f"Its page is at [bold]{scheme}://{found.services['gateway'].address}/[/].")
    console.print(table)
    console.print(f"logs  {found.logs}", markup=False)
    console.print("try   minmo talk examples/question.wav --out answer.wav", markup=False)
    console.print('      minmo say "Hello!" --out speech.wav', markup=False)
    console.print("Ctrl-C stops it.")
