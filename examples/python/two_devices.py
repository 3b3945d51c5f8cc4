"""Two devices of one new user with python-socketio: what one changes the other has.

    pip install -r requirements.txt
    python two_devices.py http://localhost:3001
"""

import json
import queue
import sys
import urllib.request
import uuid

import socketio

URL = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:3001"
PATIENCE_SECONDS = 10


def post(path, body):
    request = urllib.request.Request(
        URL + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        return json.load(answer)


class Device:
    """A connected device; what it hears waits in `heard`."""

    def __init__(self, token, name):
        self.name = name
        self.heard = queue.Queue()
        self.client = socketio.Client()
        for event in ("session-restored", "session-updated", "realtime-event"):
            self.client.on(event, lambda body, event=event: self.heard.put((event, body)))
        auth = {"token": token, "deviceInfo": {"name": name, "type": "python"}}
        self.client.connect(URL, auth=auth, wait_timeout=PATIENCE_SECONDS)
        self.restored = self.next("session-restored")

    def next(self, wanted):
        while True:
            event, body = self.heard.get(timeout=PATIENCE_SECONDS)
            if event == wanted:
                return body

    def ask(self, event, body):
        """Emits an event and returns its acknowledgement: with `ok`, or with an `error` and its `code`."""
        return self.client.call(event, body, timeout=PATIENCE_SECONDS)


def main():
    email = f"ann-{uuid.uuid4()}@example.com"
    token = post("/api/auth/register", {"email": email, "password": "correct horse"})["token"]
    laptop, phone = Device(token, "Laptop"), Device(token, "Phone")

    ack = laptop.ask("session-update", {"sessionKey": "editor", "state": {"text": "Hello", "likes": 0}})
    print("laptop wrote version", ack["version"])
    print("phone sees", phone.next("session-updated")["state"])

    # Both count at once, and both count.
    for device in (laptop, phone):
        like = {"sessionKey": "editor", "ops": [{"op": "inc", "path": "/likes", "value": 1}]}
        assert device.ask("session-update", like)["ok"]
    session = phone.ask("session-get", {"keys": ["editor"]})
    print("likes:", session["sessionData"]["editor"]["likes"])

    laptop.client.emit("realtime-event", {"type": "cursor", "payload": {"line": 1}})
    print("phone sees a cursor at", phone.next("realtime-event")["payload"])
    for device in (laptop, phone):
        device.client.disconnect()


main()
