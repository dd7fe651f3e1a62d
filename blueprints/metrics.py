"""What Prometheus reads. Each scrape reaches one worker: its own figures carry its pid, the others are everyone's."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from blueprints.server import Server
from lastcall.clock import boottime_ns
from lastcall.errors import DatabaseAway
from models.sizes import Sizes, read_sizes
from models.worker import observed_workers

# A registry is made for each scrape, so that would be the time of the scrape.
disable_created_metrics()  # type: ignore[no-untyped-call]


def write_metrics(server: Server) -> tuple[bytes, str]:
    """The metrics as text, and their content type. Without the database, what this process knows by itself."""
    registry = CollectorRegistry()
    cutoffs, pid = server.lastcall.cutoffs, str(os.getpid())

    def of_this_worker(name: str, help_text: str, value: float) -> None:
        Gauge(f"lastcall_{name}", help_text, ["pid"], registry=registry).labels(pid).set(value)

    of_this_worker("cutoffs_in_memory", "Cutoffs that this worker holds", len(cutoffs))
    left_s = max(0.0, (cutoffs.lease_until_ns - boottime_ns()) / 1e9)
    of_this_worker("lease_left_seconds", "For how long this worker may believe its cutoffs", left_s)
    of_this_worker("event_streams", "Event streams that this worker carries", server.changes.streams)
    rounds = Counter("lastcall_rounds", "Reads of the cutoffs by this worker", ["pid"], registry=registry)
    rounds.labels(pid).inc(server.lastcall.listener.reads_done)
    try:
        sizes, workers = read_sizes(), observed_workers(server.watch)
    except DatabaseAway:
        Gauge("lastcall_database_up", "Whether the database answers", registry=registry).set(0)
        return generate_latest(registry), CONTENT_TYPE_LATEST
    Gauge("lastcall_database_up", "Whether the database answers", registry=registry).set(1)
    _add_sizes(registry, sizes)
    states = Gauge("lastcall_workers", "Workers by state", ["state"], registry=registry)
    for state in ("starting", "live", "fenced"):
        states.labels(state).set(sum(worker.state == state for worker in workers))
    behind = Gauge("lastcall_workers_behind", "Cutoffs that the slowest live worker has not applied", registry=registry)
    behind.set(max((worker.behind for worker in workers if worker.state == "live"), default=0))
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _add_sizes(registry: CollectorRegistry, sizes: Sizes) -> None:
    Gauge("lastcall_cutoffs_in_database", "Rows of the table cutoffs", registry=registry).set(sizes.cutoffs)
    Gauge("lastcall_sessions_estimate", "Rows of the table login_sessions", registry=registry).set(sizes.sessions)
    canary = Gauge(
        "lastcall_canary_age_seconds",
        "Since every live worker last refused the canary; alert above 60",
        registry=registry,
    )
    canary.set(sizes.canary_age_s if sizes.canary_age_s is not None else float("nan"))
