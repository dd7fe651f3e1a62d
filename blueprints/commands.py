"""The command line: `flask --app app …`. It works with the web processes down; the embedded database is started if need be."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import wraps
from typing import Any
from uuid import UUID

import click
import psycopg
from flask import Flask, current_app
from flask.cli import AppGroup
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from blueprints.server import server
from blueprints.shapes import NewUser, Reason, SessionQuery, write_time
from lastcall.errors import LastcallError
from models import demo, force_logout, housekeeping, user
from models.audit import Actor
from models.force_logout import Receipt
from models.login_session import SessionFilter, list_sessions
