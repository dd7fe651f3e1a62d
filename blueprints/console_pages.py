"""The console's pages that only show: the history of revocations, and the workers."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, render_template
from flask.typing import ResponseReturnValue

from blueprints.console import signed_in
from blueprints.console_sessions import table_of
from blueprints.operation import query_given, read_form
from blueprints.server import server
from blueprints.shapes import Paging
from models.revocation import list_revocations
from models.worker import observed_workers

bp = Blueprint("console_pages", __name__, url_prefix="/console")


@bp.get("/history")
@signed_in
def history() -> ResponseReturnValue:
    return render_template("history.html", **history_context())


@bp.get("/history/table")
@signed_in
def history_table() -> ResponseReturnValue:
    return table_of("console_pages.history", render_template("_history_table.html", **history_context()))


def history_context() -> dict[str, Any]:
    query = read_form(Paging, query_given())
    rows, cursor = list_revocations(limit=query.limit, cursor=query.cursor)
    return {"rows": rows, "query": query, "first_page": {}, "next_page": {"cursor": cursor} if cursor else None}


@bp.get("/workers")
@signed_in
def workers() -> ResponseReturnValue:
    return render_template("workers.html", **workers_context())


@bp.get("/workers/table")
@signed_in
def workers_table() -> ResponseReturnValue:
    return render_template("_workers_table.html", **workers_context())


def workers_context() -> dict[str, Any]:
    found = observed_workers(server().watch)
    return {
        "workers": found,
        "live": sum(worker.state == "live" for worker in found),
        "here": server().lastcall.listener.worker_id,
        "lease_s": server().settings.lease,
    }
