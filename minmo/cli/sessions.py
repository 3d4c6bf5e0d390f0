"""`minmo sessions`: the conversations that the server keeps."""

from __future__ import annotations

from typing import Annotated

import typer

from minmo.cli.options import Address, Json, TlsCa, Token

app = typer.Typer(
    no_args_is_help=True,
    help="List, show and delete the conversations that the server keeps.\n\n"
    "Example: minmo sessions list",
)

_SessionId = Annotated[str, typer.Argument(help="Id of the session, as `list` shows it.")]


@app.command("list")
def list_sessions(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 50,
    address: Address = None,
    token: Token = None,
    tls_ca: TlsCa = None,
    as_json: Json = False,
) -> None:
    """List the sessions, newest first.

    Example: minmo sessions list --limit 10
    """
    import json

    from google.protobuf.json_format import MessageToDict
    from rich.console import Console
    from rich.table import Table

    from minmo.cli.reach import Reach
    from minmo.client import sessions

    reach = Reach(address, token, tls_ca, quiet=as_json)
    found = reach.run(lambda server: sessions.list_sessions(server.target, limit))
    if as_json:
        typer.echo(json.dumps([MessageToDict(session) for session in found], indent=2))
        return
    if not found:
        typer.echo("there are no sessions")
        return
    table = Table("session", "turns", "last used", "now", box=None, header_style="dim")
    for session in found:
        used = session.update_time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")
        state = "talking" if session.streaming else ""
        table.add_row(session.session_id, str(session.turn_count), used, state)
    Console(soft_wrap=True).print(table)


@app.command("show")
def show_session(
    session_id: _SessionId,
    address: Address = None,
    token: Token = None,
    tls_ca: TlsCa = None,
    as_json: Json = False,
) -> None:
    """Show a session with what was said.

    Example: minmo sessions show SESSION
    """
    from google.protobuf.json_format import MessageToJson

    from minmo.cli.reach import Reach
    from minmo.client import sessions
    from minmo.v1 import common_pb2, conversation_pb2

    reach = Reach(address, token, tls_ca, quiet=as_json)
    session = reach.run(lambda server: sessions.get_session(server.target, session_id))
    if as_json:
        typer.echo(MessageToJson(session))
        return
    typer.echo(f"session {session.session_id}, {session.turn_count} turns")
    for turn in session.turns:
        who = "MinMo" if turn.role == common_pb2.ROLE_ASSISTANT else "you"
        cut = turn.outcome == conversation_pb2.TURN_OUTCOME_INTERRUPTED
        typer.echo(f"{who:>6}  {turn.text}{' …' if cut else ''}")


@app.command("delete")
def delete_session(
    session_id: _SessionId,
    address: Address = None,
    token: Token = None,
    tls_ca: TlsCa = None,
) -> None:
    """Delete a session and what is stored of it.

    Example: minmo sessions delete SESSION
    """
    from minmo.cli.reach import Reach
    from minmo.client import sessions

    reach = Reach(address, token, tls_ca)
    reach.run(lambda server: sessions.delete_session(server.target, session_id))
    typer.echo(f"deleted {session_id}")
