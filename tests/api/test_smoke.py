def test_x(root, alice):
    assert root.is_in() and alice.is_in()
    r = root.delete(f"/admin/sessions/{alice.user_id}")
    assert r.status_code == 200, r.text
    print(r.json)
    assert not alice.is_in()


def test_g(start_gunicorn):
    g = start_gunicorn(2)
    t = g.sign_in("admin", "correct horse battery")
    for line in g.lines():
        assert line.ask("GET", "/api/v1/auth/me", token=t["access_token"]).status == 200
