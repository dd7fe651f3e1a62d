"""Users and their roles. Deletion, disabling, a new password, a lost role end sessions by trigger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, delete, exists, func, or_, select, text, tuple_
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models import passwords
from models.audit import Actor
from models.cursor import read_cursor, write_cursor
from models.database import Base, db, position_of_transaction, say, transaction
from models.errors import Conflict, NotFound
from models.login_session import LoginSession, is_active
from models.revocation import Revocation
from models.session_list import count_active

ADMIN = "admin"
_ADMINS_LOCK = 7_530_002


class User(Base):
    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    username: Mapped[str]
    password_hash: Mapped[str]
    gen: Mapped[int] = mapped_column(server_default=text("0"))
    disabled_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    role_rows: Mapped[list[UserRole]] = relationship(lazy="selectin", order_by="UserRole.role", passive_deletes=True)

    @property
    def roles(self) -> list[str]:
        return [row.role for row in self.role_rows]


class UserRole(Base):
    __tablename__ = "user_roles"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)


@dataclass(frozen=True, slots=True)
class UserFacts:
    """A user as clients see him."""

    user_id: str
    username: str
    roles: list[str]
    created_at: datetime
    disabled_at: datetime | None
    active_sessions: int


@dataclass(frozen=True, slots=True)
class Changed:
    """A user after a change, with the position that workers must have reached for it to be in force (or None)."""

    user: UserFacts | None
    position: str | None
    sessions_ended: int = 0


def list_users(
    *, q: str | None = None, role: str | None = None, limit: int = 50, cursor: str | None = None
) -> tuple[list[UserFacts], str | None]:
    """Users by name, a page at a time. Raises BadCursor."""
    context: dict[str, Any] = {"list": "users", "q": q, "role": role}
    query = select(User).order_by(func.lower(User.username), User.id).limit(limit + 1)
    if q:
        query = query.where(User.username.icontains(q, autoescape=True))
    if role:
        query = query.where(exists().where(UserRole.user_id == User.id, UserRole.role == role))
    if cursor:
        name, user_id = read_cursor(cursor, context, 2)
        query = query.where(tuple_(func.lower(User.username), User.id) > tuple_(func.lower(name), UUID(user_id)))
    with transaction() as session:
        rows = session.scalars(query).all()
        counts = _active_counts([row.id for row in rows])
        users = [_facts(row, counts.get(row.id, 0)) for row in rows[:limit]]
    more = len(rows) > limit
    return users, write_cursor([users[-1].username, users[-1].user_id], context) if more else None


def get_user(user_id: UUID) -> UserFacts:
    """Raises NotFound."""
    with transaction():
        return _facts(_found(user_id), count_active(user_id))


def find_user(name_or_id: str) -> UserFacts:
    """By id, or else by name in any case. Raises NotFound."""
    with transaction() as session:
        condition = func.lower(User.username) == func.lower(name_or_id)
        try:
            condition = or_(condition, User.id == UUID(name_or_id))
        except ValueError:
            pass
        user = session.scalar(select(User).where(condition).limit(1))
        if user is None:
            raise NotFound("There is no user of this name or id: look at the list of users.")
        return _facts(user, count_active(user.id))


def was_ever(user_id: UUID) -> bool:
    """Whether there is, or ever was, such a user."""
    with transaction() as session:
        return bool(
            session.scalar(
                select(
                    or_(
                        exists().where(User.id == user_id),
                        exists().where(LoginSession.user_id == user_id),
                        exists().where(Revocation.scope == "user", Revocation.subject == str(user_id)),
                    )
                )
            )
        )


def create_user(username: str, password: str, roles: Sequence[str]) -> UserFacts:
    """Raises Conflict when the name is taken, in any case."""
    password_hash = passwords.hash_password(password)
    with transaction() as session:
        user_id = session.scalar(
            text(
                "INSERT INTO users (username, password_hash) VALUES (:name, :hash)"
                " ON CONFLICT (lower(username)) DO NOTHING RETURNING id"
            ),
            {"name": username, "hash": password_hash},
        )
        if user_id is None:
            raise Conflict("username_taken", "This user name is taken: choose another.")
        session.add_all([UserRole(user_id=user_id, role=role) for role in sorted(set(roles))])
        session.flush()
        return _facts(_found(user_id), 0)


def change_user(user_id: UUID, *, disabled: bool | None, password: str | None, actor: Actor) -> Changed:
    """Disable or enable a user, give a new password, or both; None leaves a part as it is. Disabling and a new
    password end every session. Raises NotFound, Conflict for the last admin."""
    password_hash = passwords.hash_password(password) if password is not None else None
    with transaction():
        user = _locked(user_id)
        changes: dict[str, str] = {}
        if disabled and user.disabled_at is None:
            _keep_an_admin(user_id)
            changes["disabled_at"] = "clock_timestamp()"
        elif disabled is False and user.disabled_at is not None:
            changes["disabled_at"] = "NULL"
        if password_hash is not None:
            changes["password_hash"] = ":hash"
        if not changes:
            return Changed(_facts(user, count_active(user_id)), None)
        return _apply(user_id, actor, changes, {"hash": password_hash} if password_hash else {})


def _apply(user_id: UUID, actor: Actor, changes: dict[str, str], values: dict[str, str]) -> Changed:
    """`changes` is SQL of ours, never a client's; values come as parameters."""
    say(**actor.facts())
    before = count_active(user_id)
    sets = ", ".join(f"{column} = {value}" for column, value in changes.items())
    db.session.execute(text(f"UPDATE users SET {sets} WHERE id = :id"), {"id": user_id, **values})
    db.session.expire_all()
    active = count_active(user_id)
    return Changed(_facts(_found(user_id), active), position_of_transaction(), before - active)


def set_roles(user_id: UUID, roles: Sequence[str], *, revoke: bool, actor: Actor) -> Changed:
    """Replace a user's roles; a lost one ends every session unless `revoke` is False. Raises NotFound, Conflict."""
    wanted = set(roles)
    with transaction() as session:
        user = _locked(user_id)
        lost, gained = set(user.roles) - wanted, wanted - set(user.roles)
        if ADMIN in lost:
            _keep_an_admin(user_id)
        before = count_active(user_id)
        say(**actor.facts(), revoke_on_role_removal="on" if revoke else "off")
        if lost:
            session.execute(delete(UserRole).where(UserRole.user_id == user_id, UserRole.role.in_(lost)))
        for role in sorted(gained):
            session.execute(
                text("INSERT INTO user_roles (user_id, role) VALUES (:id, :role) ON CONFLICT DO NOTHING"),
                {"id": user_id, "role": role},
            )
        session.expire_all()
        active = count_active(user_id)
        position = position_of_transaction() if lost and revoke else None
        return Changed(_facts(_found(user_id), active), position, before - active)


def delete_user(user_id: UUID, actor: Actor) -> Changed:
    """Delete a user (ends every session). Raises NotFound, Conflict for the last admin."""
    with transaction() as session:
        _locked(user_id)
        _keep_an_admin(user_id)
        before = count_active(user_id)
        say(**actor.facts())
        session.execute(text("DELETE FROM users WHERE id = :id"), {"id": user_id})
        return Changed(None, position_of_transaction(), before)


def ensure_first_admin(username: str, password: str | None) -> str | None:
    """Make the first admin, only when there is none. Returns the password that was invented for it, or None."""
    with transaction() as session:
        session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADMINS_LOCK})
        if session.scalar(select(exists().where(UserRole.role == ADMIN))):
            return None
        invented = None if password else passwords.invent_password()
        password_hash = passwords.hash_password(password or invented or "")
        user_id = session.scalar(select(User.id).where(func.lower(User.username) == func.lower(username)))
        if user_id is None:
            user = User(username=username, password_hash=password_hash)
            session.add(user)
            session.flush()
            user_id = user.id
        else:
            session.execute(
                text("UPDATE users SET password_hash = :hash, disabled_at = NULL WHERE id = :id"),
                {"hash": password_hash, "id": user_id},
            )
        session.add(UserRole(user_id=user_id, role=ADMIN))
        return invented


def _keep_an_admin(user_id: UUID) -> None:
    """Raise Conflict unless another admin would be left. Whoever takes one away waits for the other who does."""
    db.session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADMINS_LOCK})
    admins = set(
        db.session.scalars(
            select(UserRole.user_id)
            .join(User, User.id == UserRole.user_id)
            .where(UserRole.role == ADMIN, User.disabled_at.is_(None))
        )
    )
    if admins == {user_id}:
        raise Conflict("last_admin", "This is the last admin: make another user an admin first.")


def _locked(user_id: UUID) -> User:
    return _found(user_id, lock=True)


def _found(user_id: UUID, *, lock: bool = False) -> User:
    query = select(User).where(User.id == user_id)
    user = db.session.scalar(query.with_for_update(key_share=True) if lock else query)
    if user is None:
        raise NotFound("There is no such user: look at the list of users.")
    return user


def _active_counts(user_ids: Sequence[UUID]) -> dict[UUID, int]:
    query = (
        select(LoginSession.user_id, func.count())
        .where(LoginSession.user_id.in_(user_ids), is_active())
        .group_by(LoginSession.user_id)
    )
    return {user_id: count for user_id, count in db.session.execute(query)}


def _facts(user: User, active_sessions: int) -> UserFacts:
    return UserFacts(str(user.id), user.username, user.roles, user.created_at, user.disabled_at, active_sessions)
