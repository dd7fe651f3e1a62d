"""A whole run at the most talkative level: no token, no refresh token and no password is in any log."""

from __future__ import annotations

import base64

from tests.conftest import PASSWORD, StartGunicorn
from tests.gunicorn import Answer, Gunicorn
from tests.workers.people import API, ME, Person, force_logout, make_person, sign_in
from tools.postgres import EmbeddedPostgres

NEW_PASSWORD = "a new and secret passphrase"
WRONG_PASSWORD = "a wrong but secret guess"


def live(server: Gunicorn) -> set[str]:
    """Everything that people do, right and wrong. Returns what must not be written down anywhere."""
    secrets = {PASSWORD, NEW_PASSWORD, WRONG_PASSWORD}

    def keep(answer: Answer) -> Answer:
        if answer.status == 200:
            secrets.update(answer.json[name] for name in ("access_token", "refresh_token"))
        return answer

    admin = sign_in(server)
    alice = make_person(server, admin, "alice", "viewer")
    people: list[Person] = [admin, alice, sign_in(server, "alice"), sign_in(server, "alice")]
    secrets.update(token for person in people for token in (person.token, person.refresh_token))
    refreshed = keep(server.ask("POST", f"{API}/auth/refresh", body={"refresh_token": alice.refresh_token}))
    assert refreshed.status == 200
    again = keep(server.ask("POST", f"{API}/auth/refresh", body={"refresh_token": refreshed.json["refresh_token"]}))
    assert again.status == 200
    # Reuse: the session ends.
    assert server.ask("POST", f"{API}/auth/refresh", body={"refresh_token": alice.refresh_token}).status == 401
    for username in ("alice", "nobody"):
        wrong = {"username": username, "password": WRONG_PASSWORD}
        assert server.ask("POST", f"{API}/auth/login", body=wrong).status == 401
    change = {"current": PASSWORD, "new": NEW_PASSWORD}
    assert keep(server.ask("POST", f"{API}/auth/password", token=people[2].token, body=change)).status == 200
    say_it_wrongly(server, admin, secrets)
    assert server.ask("PATCH", f"{API}/admin/users/{alice.user_id}", token=admin.token, body={"password": "x"}).status
    assert server.ask("GET", f"{API}/admin/sessions?state=all", token=admin.token).status == 200
    assert force_logout(server, admin, alice).status == 200
    assert server.ask("GET", ME, token=alice.token).status == 401
    kept = server.ask("DELETE", f"{API}/admin/sessions?keep_current=true", token=admin.token)
    assert kept.status == 200
    secrets.update(kept.json["tokens"][name] for name in ("access_token", "refresh_token"))
    return secrets


def say_it_wrongly(server: Gunicorn, admin: Person, secrets: set[str]) -> None:
    """Tokens and passwords where they do not belong, and of the wrong shape."""
    header, payload, signature = admin.token.split(".")
    forged = base64.urlsafe_b64encode(b'{"alg":"none","typ":"at+jwt"}').rstrip(b"=").decode()
    bad = [
        f"{header}.{payload}.{signature[:-6]}AAAAAA",
        f"{forged}.{payload}.{signature}",
        f"{header}.{payload}",
        f"{header}.{payload}.{signature}.{signature}",
        admin.token + "=",
        "x" * 9000,
    ]
    for token in bad:
        assert server.ask("GET", ME, token=token).status == 401
    secrets.update({payload, signature, *bad})
    for body in (
        {"username": "alice", "password": [PASSWORD]},
        {"username": "alice", "password": PASSWORD, "passwrod": PASSWORD},
        {"username": {"name": "alice"}, "password": WRONG_PASSWORD},
        [PASSWORD],
    ):
        answer = server.ask("POST", f"{API}/auth/login", body=body)
        assert answer.status == 400
        assert PASSWORD not in answer.text
        assert WRONG_PASSWORD not in answer.text
    for token in (admin.refresh_token, admin.token):
        assert server.ask("GET", ME, token=admin.refresh_token).status == 401
        assert server.ask("POST", f"{API}/auth/refresh", body={"refresh_token": token[:60]}).status == 401
    assert server.ask("GET", ME, headers={"Authorization": f"Basic {admin.token}"}).status == 401
    assert server.ask("POST", f"{API}/auth/refresh", token=admin.token, body={"refresh_token": 1}).status == 400


def test_no_secret_is_in_the_logs_of_a_whole_run(start_gunicorn: StartGunicorn, postgres: EmbeddedPostgres) -> None:
    server = start_gunicorn(2, "--log-level", "debug", "--access-logfile", "-", LOG_LEVEL="debug")
    secrets = live(server)
    server.stop()
    written = server.log.read_text()
    assert "[DEBUG]" in written
    assert f"POST {API}/auth/login" in written
    written += (postgres.data_dir.parent / "postgres.log").read_text()
    assert len(secrets) > 20
    assert [secret for secret in secrets if secret in written] == []
    assert "Traceback" not in server.log.read_text()
