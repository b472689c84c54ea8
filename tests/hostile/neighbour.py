"""A caller who does everything right, at a low rate: `python -m tests.hostile.neighbour --port 1 --key k`.

It waits for nothing but its own answers, counts a turn's time from the instant it was due, and prints what it saw when
its standard input closes: `[due on the monotonic clock, seconds, status]`, status 0 where the connection broke.
"""

import argparse
import http.client
import json
import sys
import threading
import time


def main() -> None:
    parser = argparse.ArgumentParser(description="Turns at a fixed rate, timed from when they were due.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--rate", type=float, default=20)
    given = parser.parse_args()
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    sys.stdout.write(json.dumps(_turns(given.port, given.key, 1 / given.rate, stop)))


def _turns(port: int, key: str, every_seconds: float, stop: threading.Event) -> list[tuple[float, float, int]]:
    seen: list[tuple[float, float, int]] = []
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    body = json.dumps({"model": "mock", "messages": [{"role": "user", "content": "neighbour-0000"}]})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    due = time.monotonic()
    while not stop.is_set():
        time.sleep(max(0.0, due - time.monotonic()))
        try:
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            answer.read()
            status = answer.status
        except (OSError, http.client.HTTPException):
            connection.close()
            status = 0
        seen.append((due, time.monotonic() - due, status))
        due += every_seconds
    return seen


if __name__ == "__main__":
    main()
