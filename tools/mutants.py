"""`make mutants`: breaks the promise in a copy of the project, one way at a time; a named test must turn red each time.

A mutant is a replacement of text that must be there. Its tests run on the unchanged copy first: they must pass there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    test: str


MUTANTS = (
    Mutant(
        "confirmation dropped",
        "models/confirmation.py",
        "if (settled and not waiting) or late:",
        "if True:",
        "tests/unit/test_confirmation.py",
    ),
    Mutant(
        "read before renew",
        "lastcall/listener.py",
        "        self._renew(connection)\n        # 3. Then the cutoffs, in a new snapshot.\n"
        "        position = self._read(connection)\n",
        "        position = self._read(connection)\n        self._renew(connection)\n",
        "tests/unit/test_order_of_the_listener.py",
    ),
    Mutant(
        "a new process trusts a database that may have gone back",
        "lastcall/listener.py",
        "if not others_may_tell and (",
        "if (",
        "tests/unit/test_database_went_back.py",
    ),
    Mutant(
        "purged in a region that the cutoffs come to",
        "models/purge.py",
        "FROM everyone WHERE NOT {FROM_ANOTHER_REGION} FOR",
        "FROM everyone FOR",
        "tests/faults/test_second_region.py",
    ),
    Mutant(
        "a commit that the standby may not have",
        "models/patience.py",
        "        if self._warned:",
        "        if False:",
        "tests/faults/test_failover.py",
    ),
    Mutant(
        "lease counted after sending",
        "lastcall/listener.py",
        "self.cutoffs.renew_lease(started_ns + ",
        "self.cutoffs.renew_lease(boottime_ns() + ",
        "tests/unit/test_order_of_the_listener.py",
    ),
    Mutant(
        "a new lease after a look",
        "lastcall/listener.py",
        "                position = self._read(connection)\n",
        "                position = self._read(connection)\n"
        "                self.cutoffs.renew_lease(self._busy_since_ns + int(self.lease_s * 1e9))\n",
        "tests/unit/test_order_of_the_listener.py",
    ),
    Mutant(
        "look-up before lease",
        "lastcall/guard.py",
        "        if now_ns < cutoffs.lease_until_ns:\n            scope = cutoffs.refuses(claims)\n",
        "        early = cutoffs.refuses(claims)\n        if now_ns < cutoffs.lease_until_ns:\n"
        "            scope = early\n",
        "tests/unit/test_order_of_the_guard.py",
    ),
    Mutant(
        "return before COMMIT",
        "models/database.py",
        "            yield db.session\n            db.session.commit()\n",
        "            yield db.session\n",
        "tests/api/test_sessions.py",
    ),
    Mutant(
        "user check dropped",
        "lastcall/cutoffs.py",
        '            if user is not None and user_gen < user & _GEN_MASK:\n                return "user"\n',
        "",
        "tests/unit/test_cutoffs.py",
    ),
    Mutant(
        "everyone check dropped",
        "lastcall/cutoffs.py",
        '            if everyone_gen < self.everyone_gen:\n                return "everyone"\n',
        "",
        "tests/unit/test_cutoffs.py",
    ),
    Mutant(
        "session check dropped",
        "lastcall/cutoffs.py",
        'return "session" if claims.sid in self._sessions else None',
        "return None",
        "tests/unit/test_cutoffs.py",
    ),
    Mutant(
        "OR for AND",
        "lastcall/cutoffs.py",
        '            if everyone_gen < self.everyone_gen:\n                return "everyone"\n',
        "            if everyone_gen >= self.everyone_gen:\n                return None\n",
        "tests/unit/test_cutoffs.py",
    ),
    Mutant(
        ">= to >",
        "lastcall/cutoffs.py",
        "user_gen < user & _GEN_MASK",
        "user_gen <= user & _GEN_MASK",
        "tests/unit/test_cutoffs.py",
    ),
    Mutant(
        "read before LISTEN",
        "lastcall/listener.py",
        '        connection.execute(f"LISTEN {CHANNEL}")\n'
        "        prepare(connection, _READ_NEW, statements.READ_NEW)\n"
        "        prepare(connection, _CONFIRM, statements.CONFIRM)\n"
        "        if went_back:\n            self._end_what_is_in_doubt(connection)\n"
        "        else:\n            self._load(connection)\n        self._round(connection)\n",
        "        prepare(connection, _READ_NEW, statements.READ_NEW)\n"
        "        prepare(connection, _CONFIRM, statements.CONFIRM)\n"
        "        if went_back:\n            self._end_what_is_in_doubt(connection)\n"
        "        else:\n            self._load(connection)\n        self._round(connection)\n"
        '        connection.execute(f"LISTEN {CHANNEL}")\n',
        "tests/unit/test_order_of_the_listener.py",
    ),
    Mutant(
        "position by a number that rises",
        "lastcall/statements.py",
        "ON c.xid >= pg_snapshot_xmin($1::pg_snapshot)",
        "ON c.xid >= pg_snapshot_xmax($1::pg_snapshot)",
        "tests/database/test_listener.py",
    ),
    Mutant(
        "lease ignored",
        "lastcall/guard.py",
        "        if now_ns < cutoffs.lease_until_ns:\n",
        "        if now_ns:\n",
        "tests/unit/test_guard.py",
    ),
    Mutant(
        "accept on database error",
        "lastcall/ask.py",
        "            self._failed_ns = boottime_ns()\n            raise CutoffsStale from None\n\n    def _threads",
        "            return None\n\n    def _threads",
        "tests/unit/test_ask.py",
    ),
    Mutant(
        "purge one second early",
        "models/purge.py",
        "AS c WHERE expires_at <= statement_timestamp() AND",
        "AS c WHERE expires_at <= statement_timestamp() + interval '1 second' AND",
        "tests/database/test_purge.py",
    ),
    Mutant(
        "refresh without lock",
        "models/refreshing.py",
        "FROM login_sessions WHERE {condition} FOR UPDATE",
        "FROM login_sessions WHERE {condition}",
        "tests/database/test_races.py",
    ),
    Mutant(
        "no trigger on deletion",
        "schema.sql",
        "CREATE OR REPLACE TRIGGER users_after_delete AFTER DELETE ON users\n"
        "FOR EACH ROW EXECUTE FUNCTION users_after_delete();\n",
        "",
        "tests/database/test_triggers.py",
    ),
    Mutant(
        "no trigger on role removal",
        "schema.sql",
        "CREATE OR REPLACE TRIGGER user_roles_after_delete AFTER DELETE ON user_roles\n"
        "FOR EACH ROW EXECUTE FUNCTION user_roles_after_loss();\n",
        "",
        "tests/database/test_triggers.py",
    ),
    Mutant(
        "iat in place of generations",
        "lastcall/cutoffs.py",
        "if user_gen is None or everyone_gen is None:",
        "if True:",
        "tests/unit/test_cutoffs.py",
    ),
    Mutant(
        "listener at import under preload",
        "lastcall/listener.py",
        "        if self._pid != os.getpid():\n            with self._lock:\n"
        "                if self._pid != os.getpid():\n",
        "        if not self._pid:\n            with self._lock:\n                if not self._pid:\n",
        "tests/database/test_listener.py",
    ),
    Mutant(
        "one route unguarded",
        "blueprints/workers.py",
        '@bp.get("/workers")\n@require_role(ADMIN)\n',
        '@bp.get("/workers")\n',
        "tests/api/test_routes.py",
    ),
    Mutant(
        "a token logged",
        "blueprints/auth.py",
        "    return answer(TokensAnswer.model_validate(tokens))\n",
        "    __import__('logging').getLogger('lastcall').warning('signed in: %s', tokens.access_token)\n"
        "    return answer(TokensAnswer.model_validate(tokens))\n",
        "tests/workers/test_logs.py",
    ),
)


def main() -> int:
    console = Console()
    with tempfile.TemporaryDirectory(prefix="lastcall-mutants-") as folder, Progress(console=console) as progress:
        copy = Path(folder)
        _copy_to(copy)
        task = progress.add_task("the tests on the unchanged copy", total=len(MUTANTS) + 1)
        whole, output = _run(copy, sorted({mutant.test for mutant in MUTANTS}))
        if not whole:
            console.print(output)
            console.print("[red]The tests fail without any mutant: mend that first.")
            return 2
        survivors = []
        for mutant in MUTANTS:
            progress.update(task, description=mutant.name, advance=1)
            killer = _killer_of(mutant, copy)
            if killer is None:
                survivors.append(mutant.name)
            verdict = f"[green]killed[/] by {killer}" if killer else "[red]SURVIVED[/]"
            progress.console.print(f"{mutant.name}: {verdict}", highlight=False)
    killed = len(MUTANTS) - len(survivors)
    console.print(f"{killed} of {len(MUTANTS)} mutants were killed")
    return 1 if survivors else 0


def _copy_to(copy: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, copy / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    shutil.copytree(ROOT / "static" / "vendor", copy / "static" / "vendor")


def _killer_of(mutant: Mutant, copy: Path) -> str | None:
    """The test that turned red. A run that ended in another way has killed nobody."""
    path = copy / mutant.file
    text = path.read_text(encoding="utf-8")
    if mutant.old not in text:
        raise SystemExit(
            f"{mutant.name}: {mutant.file} no longer holds the text to replace; bring tools/mutants.py up to date"
        )
    path.write_text(text.replace(mutant.old, mutant.new, 1), encoding="utf-8")
    try:
        passed, output = _run(copy, [mutant.test])
    finally:
        path.write_text(text, encoding="utf-8")
    if passed:
        return None
    red = [line.split()[1] for line in output.splitlines() if line.startswith(("FAILED ", "ERROR ")) and "::" in line]
    return red[0] if red else None


def _run(copy: Path, tests: list[str]) -> tuple[bool, str]:
    """Whether the tests pass in the copy, and what they printed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    return done.returncode == 0, (done.stdout + done.stderr)[-8000:]


if __name__ == "__main__":
    sys.exit(main())
