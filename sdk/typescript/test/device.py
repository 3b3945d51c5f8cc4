"""A device with the stock python-socketio behind JSON lines, for together.test.ts.

    python device.py URL TOKEN NAME

A line in is [event, body]; a line out is [event, body] of what the server sent, or ["ack", body] of the answer.
It ends with its standard input.
"""

import json
import sys
import threading

import socketio

url, token, name = sys.argv[1:]
client = socketio.Client()
line = threading.Lock()


def say(event, body):
    with line:
        print(json.dumps([event, body]), flush=True)


client.on("*", say)
client.connect(url, auth={"token": token, "deviceInfo": {"name": name, "type": "python"}}, wait_timeout=20)
for command in sys.stdin:
    event, body = json.loads(command)
    client.emit(event, body, callback=lambda ack: say("ack", ack))
client.disconnect()
