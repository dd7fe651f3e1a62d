"""Plain connections that LISTEN, for bench/listeners.py, and hear to the end what they are told.

python -m bench.ears HOW_MANY URL
"""

from __future__ import annotations

import selectors
import sys

import psycopg

from lastcall.listener import CHANNEL


def main() -> None:
    selector = selectors.DefaultSelector()
    for _ in range(int(sys.argv[1])):
        connection = psycopg.connect(sys.argv[2], autocommit=True)
        connection.execute(f"LISTEN {CHANNEL}")
        selector.register(connection.pgconn.socket, selectors.EVENT_READ, connection)
    selector.register(sys.stdin, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.data is None:
                return
            list(key.data.notifies(timeout=0))


if __name__ == "__main__":
    main()
