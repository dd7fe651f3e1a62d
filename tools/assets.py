"""Puts the browser's files in place, out of wheels whose hashes were checked: into static/vendor/, never committed."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

VENDOR = Path(__file__).resolve().parent.parent / "static" / "vendor"

# name here: (wheel, path in it, SHA-256)
ASSETS = {
    "htmx.js": (
        "django_htmx",
        "django_htmx/static/django_htmx/htmx-2.min.js",
        "71ea67185bfa8c98c39d31717c6fce5d852370fcdfd129db4543774d3145c0de",
    ),
    "bootstrap.css": (
        "bootstrap_flask",
        "flask_bootstrap/static/bootstrap5/css/bootstrap.min.css",
        "d85327d99c7a3ee1f9b5d0500d1370acea3ad2db39c163c2f51f232baedbdede",
    ),
    "swagger-ui.css": (
        "flask_swagger_ui",
        "flask_swagger_ui/dist/swagger-ui.css",
        "c3cfe8248c4b0b89673600fb829924eafbac6de4bc4b2b06f5f5243483074d0a",
    ),
    "swagger-ui-bundle.js": (
        "flask_swagger_ui",
        "flask_swagger_ui/dist/swagger-ui-bundle.js",
        "3f6abf70480db7e07914df4c98a77385f22ea585eaf457a3e6415ba0eae2d167",
    ),
}


def unpack(wheels: Path) -> None:
    """Copy each asset out of the wheels in a folder; every one is checked before any is written. Raises ValueError."""
    contents = {name: _read(wheels, *source) for name, source in ASSETS.items()}
    VENDOR.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (VENDOR / name).write_bytes(content)


def _read(wheels: Path, wheel: str, path: str, wanted: str) -> bytes:
    found = sorted(wheels.glob(f"{wheel}-*.whl"))
    if len(found) != 1:
        raise ValueError(f"the wheel {wheel} is missing; run make clean, then make again")
    with zipfile.ZipFile(found[0]) as archive:
        try:
            content = archive.read(path)
        except KeyError:
            raise ValueError(f"{found[0].name} holds no {path}; tools/assets.py names another version") from None
    if hashlib.sha256(content).hexdigest() != wanted:
        raise ValueError(f"{path} of {found[0].name} has another SHA-256 than tools/assets.py; it was not used")
    return content


if __name__ == "__main__":
    try:
        unpack(Path(sys.argv[1]))
    except ValueError as error:
        sys.exit(str(error))
