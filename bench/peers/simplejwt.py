"""djangorestframework-simplejwt with its blacklist app, which by itself looks at refresh tokens only: here the access
token of every request is looked up as well, by the library's own BlacklistMixin. No query reads the user."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.urls import path

from bench.peers.given import AUDIENCE, DATABASE_URL, ISSUER, SECRET

_url = urlsplit(DATABASE_URL)
settings.configure(
    SECRET_KEY=SECRET,
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[],
    INSTALLED_APPS=[
        "django.contrib.contenttypes",
        "django.contrib.auth",
        "rest_framework",
        "rest_framework_simplejwt.token_blacklist",
    ],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": _url.path.strip("/"),
            "USER": _url.username,
            "HOST": parse_qs(_url.query)["host"][0],
            "CONN_MAX_AGE": None,  # each thread keeps its connection
        }
    },
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": ["rest_framework_simplejwt.authentication.JWTStatelessUserAuthentication"],
        "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    },
    SIMPLE_JWT={
        "SIGNING_KEY": SECRET,
        "AUDIENCE": AUDIENCE,
        "ISSUER": ISSUER,
        "USER_ID_CLAIM": "sub",
        "AUTH_TOKEN_CLASSES": [f"{__name__}.CheckedToken"],
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    USE_TZ=True,
)
django.setup()

# They read the settings when they are imported.
from rest_framework.decorators import api_view  # noqa: E402
from rest_framework.request import Request  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework_simplejwt.tokens import AccessToken, BlacklistMixin  # noqa: E402


class CheckedToken(BlacklistMixin, AccessToken):  # type: ignore[misc]
    """An access token that the blacklist is asked about."""


@api_view(["GET"])
def me(request: Request) -> Response:
    return Response({"user": request.user.id})


urlpatterns = [path("me", me)]


def create_app() -> WSGIHandler:
    return WSGIHandler()
