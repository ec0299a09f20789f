"""Asks a server for its health, over and over, from a process of its own: ``health HOST PORT INTERVAL``.

A load's own event loop is busy with other answers and would add to every time. This one ends with its standard input,
and then prints a JSON list of ``[ms, status]``; the status of what got no answer is 0.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from http.client import HTTPConnection, HTTPException

PATIENCE_S = 30.0
A_CONNECTION = 20  # questions: then a new one, which has to be accepted too


def asked(connection: HTTPConnection) -> tuple[float, int]:
    """Milliseconds to a whole answer, and its status."""
    start = time.perf_counter()
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        response.read()
        status = response.status
    except (OSError, HTTPException):
        connection.close()
        status = 0
    return 1e3 * (time.perf_counter() - start), status


def main() -> int:
    """Asks until standard input ends."""
    host, port, interval = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    found: list[tuple[float, int]] = []
    connection = HTTPConnection(host, port, timeout=PATIENCE_S)
    while True:
        if len(found) % A_CONNECTION == 0:
            connection.close()
        found.append(asked(connection))
        if ended.wait(interval):
            break
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
