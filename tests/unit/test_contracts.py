"""The import contracts of pyproject.toml, which `make lint` holds the code to, leave nothing out."""

from __future__ import annotations

import tomllib

from tests.gunicorn import ROOT


def test_every_module_of_the_core_but_the_extension_must_not_know_flask() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    (contract,) = [contract for contract in contracts if contract["name"] == "Only the extension knows Flask"]
    modules = {f"lastcall.{path.stem}" for path in (ROOT / "lastcall").glob("*.py")}
    assert set(contract["source_modules"]) == modules - {"lastcall.__init__", "lastcall.flask"}
