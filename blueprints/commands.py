"""The command line: `flask --app app …`. It works with the web processes down (it starts the embedded database)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any
from uuid import UUID

import click
from flask import Flask
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from blueprints import words
from blueprints.operation import field_errors
from blueprints.server import Server, server
from blueprints.sessions import session_filter
from blueprints.shapes import Because, NewUser, SessionAnswer, SessionQuery
from lastcall.errors import LastcallError
from models import demo, force_logout, passwords
from models import purge as purging
from models import user as users
from models.audit import Actor
from models.confirmation import confirm
from models.database import apply_schema, db, transaction
from models.database_errors import database_errors, schema_errors
from models.errors import NotFound
from models.everyone import note_access_ttl
from models.force_logout import Receipt
from models.session_list import list_sessions
from models.user import ADMIN
from tools.postgres import PostgresError, database

AppOn = Callable[[str], Flask]
"""Makes an application of its own on the URL of the embedded database."""
Command = Callable[..., None]


def register_commands(app: Flask, app_on: AppOn) -> None:
    def connected(command: Command) -> Command:
        """Run within an application whose database runs; errors are one line."""

        @wraps(command)
        def run(*args: Any, **kwargs: Any) -> None:
            here: Server = app.extensions["lastcall_server"]
            try:
                with ExitStack() as stack:
                    one = app
                    if not here.settings.database_url:
                        one = app_on(stack.enter_context(database(here.settings.data_dir)))
                    stack.enter_context(one.app_context())
                    stack.callback(lambda: db.engine.dispose())
                    with database_errors():
                        command(*args, **kwargs)
            except (LastcallError, PostgresError) as error:
                raise click.ClickException(str(error)) from None
            except ValidationError as error:
                wrong = "; ".join(f"{item['field']}: {item['message']}" for item in field_errors(error))
                raise click.ClickException(wrong) from None
            except UnicodeError:
                raise click.ClickException("what was given is not UTF-8") from None

        return run

    def add(name: str, command: Command, group: Any = app.cli) -> None:
        group.command(name, with_appcontext=False)(connected(command))

    add("init-db", init_db)
    add("create-admin", create_admin)
    add("sessions", sessions)
    add("purge", purge)
    add("demo-data", demo_data)
    group = app.cli.group(
        "revoke", help="Sign out a user, end one session, or sign out everyone; at once, everywhere."
    )(_group)
    add("user", revoke_user, group)
    add("session", revoke_session, group)
    add("everyone", revoke_everyone, group)


def _group() -> None:
    pass


def init_db() -> None:
    """Apply schema.sql, as often as you like."""
    settings = server().settings
    with schema_errors():
        apply_schema(settings.database_url)
    with transaction():
        note_access_ttl(settings.access_ttl, exactly=True)
    click.echo("The schema is in place.")


@click.argument("username", required=False)
@click.option("--username", "named", help="The same as NAME.")
@click.option("--password-stdin", is_flag=True, help="Read the password from the first line of standard input.")
def create_admin(username: str | None, named: str | None, password_stdin: bool) -> None:
    """Make a user with the role admin. Without --password-stdin the password is LASTCALL_ADMIN_PASSWORD; where that is
    not set either, one is invented and shown once."""
    settings = server().settings
    line = sys.stdin.readline().removesuffix("\r\n").removesuffix("\n") if password_stdin else None
    given = line if line is not None else settings.admin_password
    password = given if given is not None else passwords.invent_password()
    names = (name for name in (username, named, settings.admin_username) if name is not None)  # an empty one is wrong
    new = NewUser(username=next(names), password=password, roles=[ADMIN])
    made = users.create_user(new.username, new.password, new.roles)
    click.echo(
        f"{made.username} is an admin." + ("" if given is not None else f" Password, shown only once: {password}")
    )


@click.option("--user", help="Name or id.")
@click.option("--q", help="Part of a name or a client, or how an address begins.")
@click.option("--role")
@click.option("--client")
@click.option("--ip", help="An address or a network such as 10.0.0.0/8.")
@click.option("--state", default="active", show_default=True, help="active, ended, expired or all.")
@click.option("--limit", default=50, show_default=True, help="1 to 200.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def sessions(limit: int, as_json: bool, **given: str | None) -> None:
    """List sessions, newest first."""
    query = SessionQuery.model_validate(
        {"limit": limit, **{key: value for key, value in given.items() if value is not None}}
    )
    page = list_sessions(session_filter(query, query.state), limit=query.limit)
    if as_json:
        for facts in page.items:
            click.echo(SessionAnswer.model_validate(facts).model_dump_json(exclude={"current"}))
        return
    table = Table("user", "roles", "client", "address", "device", "signed in", "state", "session")
    for facts in page.items:
        row = (facts.username, ", ".join(facts.roles), facts.client_id, facts.last_ip or "", facts.device)
        signed_in = facts.created_at.isoformat(" ", "seconds")
        table.add_row(*(escape(cell) for cell in row), signed_in, facts.state, facts.session_id)
    Console().print(table)
    about = "" if page.total_is_exact else "about "
    click.echo(f"{len(page.items)} of {about}{page.total} sessions")


_reason = click.option("--reason", help="For the history, and for the person signed out; 500 characters at most.")
_yes = click.option("--yes", is_flag=True, help="Do not ask.")


@click.argument("name_or_id")
@_reason
@_yes
def revoke_user(name_or_id: str, reason: str | None, yes: bool) -> None:
    """Sign a user out everywhere; by name, or by id (also of one who was deleted)."""
    try:
        found = users.find_user(name_or_id)
        user_id, name, active = UUID(found.user_id), found.username, found.active_sessions
    except NotFound:
        if not _is_id(name_or_id):
            raise
        user_id, name, active = UUID(name_or_id), name_or_id, 0
    _ask(f"Force logout {name} ({active} active sessions)?", yes)
    _print_receipt(force_logout.revoke_user(user_id, _operator(reason)))


@click.argument("session_id", type=click.UUID)
@_reason
@_yes
def revoke_session(session_id: UUID, reason: str | None, yes: bool) -> None:
    """End one session."""
    _ask(f"End session {session_id}?", yes)
    _print_receipt(force_logout.revoke_session(session_id, _operator(reason)))


@_reason
@_yes
def revoke_everyone(reason: str | None, yes: bool) -> None:
    """Sign out everyone."""
    _ask("Log out all users, admins too?", yes)
    _print_receipt(force_logout.revoke_everyone(_operator(reason)))


def purge() -> None:
    """Delete what is over: cutoffs whose last token has expired, old sessions, old sign-in attempts."""
    click.echo(", ".join(f"{count} {table}" for table, count in purging.purge().items()) + " deleted")


@click.option("--sessions", "count", type=click.IntRange(1, 10_000_000), default=2000, show_default=True)
def demo_data(count: int) -> None:
    """Invent users and sessions to look at. Nobody can sign in as one of them."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Inventing sessions", total=count)
        for made in demo.invent_sessions(count, server().settings):
            progress.update(task, completed=made)
    click.echo(f"{count} sessions were invented.")


def _operator(reason: str | None) -> Actor:
    return Actor("command line", reason=Because.model_validate({"reason": reason}).reason or None)


def _ask(question: str, yes: bool) -> None:
    """Only a person at a terminal is asked; a script has said what it wants."""
    if not yes and sys.stdin.isatty():
        click.confirm(question, abort=True)


def _is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _print_receipt(receipt: Receipt) -> None:
    workers = confirm(receipt.position, server().watch, since_ns=receipt.started_ns)
    ended = words.count(receipt.sessions_ended, "session")
    if not workers.in_force:
        names = json.dumps(list(workers.unconfirmed))
        raise click.ClickException(
            f"It is written ({ended} ended), but not in force everywhere yet: no word from the workers {names}"
        )
    click.echo(f"{words.in_force(workers)}: {ended} ended (revocation {receipt.revocation_id})")
