from flask import Blueprint, Flask

bp = Blueprint("console_pages", __name__, url_prefix="/console")


def init_app(app: Flask) -> None:
    pass
