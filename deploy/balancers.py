#!/usr/bin/env python3
"""Both HAProxy configurations at work, deploy/haproxy.cfg and the chart's, before nodes that are stubs.

    deploy/balancers.py

Real HAProxy processes, the chart's two as peers that learn their nodes from a DNS server here, which as in a cluster
knows full names only. Sessions stay with their node through either HAProxy, while it drains and when a HAProxy dies; new
ones go elsewhere; those of a dead node are sent elsewhere. Intervals of checks and look-ups are shortened, nothing else.
Needs helm and haproxy on PATH; everything is on this host's loopback and ended at the end.
"""

import contextlib
import http.client
import http.server
import json
import os
import pathlib
import random
import re
import socket
import socketserver
import struct
import subprocess
import sys
import tempfile
import threading
import time

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
WITHIN_SECONDS = 20
CLIENT_AWAY_SECONDS = 0.005
SERVICE = "_http._tcp.check-tandem-nodes.check.svc.cluster.local"
SRV, A = 33, 1


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def eventually(what, happens):
    """Waits for a true answer and returns it."""
    until = time.monotonic() + WITHIN_SECONDS
    while time.monotonic() < until:
        if answer := happens():
            return answer
        time.sleep(0.02)
    raise AssertionError(f"not within {WITHIN_SECONDS} s: {what}")


class Node:
    """What a balancer sees of a node: whether it is ready, and polling sessions that only it knows."""

    def __init__(self, name):
        self.name, self.ready, self.sessions = name, True, set()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.server.handle_error = lambda *_: None  # a health check hangs up behind the status
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def handler(node):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"  # a connection a request: a node that is killed holds none

            def do_GET(self):
                sid = re.search(r"[?&]sid=([^&]+)", self.path)
                if self.path == "/api/health/ready":
                    self.answer(200 if node.ready else 503)
                elif sid:
                    self.answer(200 if sid[1] in node.sessions else 400)
                else:
                    sid = "".join(random.choices("abcdefghijklmnopqrstuvwxyzABCDEF0123456789_-", k=16))
                    node.sessions.add(sid)
                    opened = {"sid": sid, "upgrades": ["websocket"], "pingInterval": 25000, "pingTimeout": 20000}
                    self.answer(200, "0" + json.dumps(opened, separators=(",", ":")))

            def answer(self, status, body="2"):
                self.send_response(status)
                self.send_header("x-node", node.name)
                self.send_header("x-heard-from", self.headers.get("x-forwarded-for", ""))
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        return Handler

    def kill(self):
        self.server.shutdown()
        self.server.server_close()


def dns_name(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


class Dns:
    """Answers SRV for SERVICE with the nodes, in any order, and A for their names; all else does not exist."""

    def __init__(self, nodes):
        self.nodes = nodes
        self.server = socketserver.ThreadingUDPServer(("127.0.0.1", 0), self.handler())
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def handler(dns):
        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                query, reply = self.request
                labels, at = [], 12
                while query[at]:
                    labels.append(query[at + 1 : at + 1 + query[at]].decode())
                    at += 1 + query[at]
                name, kind = ".".join(labels), struct.unpack(">H", query[at + 1 : at + 3])[0]
                answers = dns.answers(name, kind)
                flags = 0x8580 if answers else 0x8583
                head = query[:2] + struct.pack(">HHHHH", flags, 1, len(answers), 0, 0)
                reply.sendto(head + query[12 : at + 5] + b"".join(answers), self.client_address)

        return Handler

    def answers(self, name, kind):
        def record(data):
            return b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 1, len(data)) + data

        if name == SERVICE and kind == SRV:
            nodes = random.sample(self.nodes, len(self.nodes))
            return [record(struct.pack(">HHH", 0, 10, node.port) + dns_name(f"{node.name}.{SERVICE}")) for node in nodes]
        if name in [f"{node.name}.{SERVICE}" for node in self.nodes] and kind == A:
            return [record(socket.inet_aton("127.0.0.1"))]
        return []


class HaProxy:
    def __init__(self, folder, config, port, status=None, **environment):
        self.file = pathlib.Path(folder) / f"{port}.cfg"
        self.file.write_text(config)
        self.port, self.status, self.environment = port, status, environment
        self.start()

    def start(self):
        self.log = open(self.file.with_suffix(".log"), "a+")
        self.process = subprocess.Popen(
            ["haproxy", "-db", "-f", self.file], env=os.environ | self.environment, stdout=self.log, stderr=self.log
        )

    def stop(self, how=subprocess.Popen.kill):
        if self.process.poll() is None:
            how(self.process)
            self.process.wait()

    def get(self, path, port=None):
        """Status, headers and body; status 0 where it does not answer."""
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=15)
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()
        except OSError:
            return 0, {}, ""

    def open(self):
        """A new polling session: its id and its node's name; None where it was refused."""
        status, headers, body = self.get("/socket.io/?EIO=4&transport=polling")
        return (json.loads(body[1:])["sid"], headers["x-node"]) if status == 200 else None

    def poll(self, sid):
        """The node that a session's next request reaches, and whether it knew the session."""
        status, headers, _ = self.get(f"/socket.io/?EIO=4&transport=polling&sid={sid}")
        return headers.get("x-node"), status == 200


def quick(config):
    """Checks and look-ups every tenth of a second instead of every few."""
    return config.replace("check inter 1s", "check inter 100ms").replace("hold valid 5s", "hold valid 100ms")


def sessions_survive(front, back, nodes):
    """The promises that both configurations make. Where there is one HAProxy, front and back are the same."""
    for proxy in (front, back):
        eventually("all nodes get sessions", lambda: len({(proxy.open() or ("", ""))[1] for _ in range(6)} - {""}) == len(nodes))

    def told(one, other):
        return all((o := one.open()) and known_to(other, *o) for _ in range(10))

    def known_to(proxy, sid, node):
        time.sleep(CLIENT_AWAY_SECONDS)
        return proxy.poll(sid) == (node, True)

    # Opened here, gone on with there, as soon as a client some milliseconds away can. On one host, without that, one
    # request in thousands is there before the other HAProxy was told; its client would open another session.
    eventually("HAProxies tell each other of their sessions", lambda: told(front, back) and told(back, front))
    opened = []
    for number in range(60):
        first, second = (front, back) if number % 2 else (back, front)
        sid, node = first.open()
        assert known_to(second, sid, node), f"session {number} left its node"
        opened.append((sid, node))
    heard_from = front.get("/socket.io/?EIO=4&transport=polling")[1]["x-heard-from"]
    assert heard_from == "127.0.0.1", f"nodes are not told a client's address but '{heard_from}'"

    def stay(those):
        for proxy in (front, back):
            for sid, node in those:
                assert proxy.poll(sid) == (node, True), f"a session left {node}"

    draining = nodes[0]
    draining.ready = False
    for proxy in (front, back):
        eventually("a draining node gets no new sessions", lambda: draining.name not in {proxy.open()[1] for _ in range(6)})
    stay(opened)

    draining.kill()
    theirs = [sid for sid, node in opened if node == draining.name]
    began = time.monotonic()
    for proxy in (front, back):
        node, known = proxy.poll(theirs[0])
        assert node and node != draining.name and not known, "a dead node's session is not sent elsewhere"
    redispatched = (time.monotonic() - began) / (1 if front is back else 2)
    stay([(sid, node) for sid, node in opened if node != draining.name])
    return opened, redispatched


def compose(folder, stack):
    nodes = [Node(f"node-{number}") for number in (1, 2, 3)]
    port = free_port()
    environment = {"TANDEM_BIND": f"127.0.0.1:{port}"}
    environment |= {f"NODE_{number}": f"127.0.0.1:{node.port}" for number, node in enumerate(nodes, 1)}
    proxy = HaProxy(folder, quick((ROOT / "deploy/haproxy.cfg").read_text()), port, **environment)
    stack.callback(proxy.stop)
    _, seconds = sessions_survive(proxy, proxy, nodes)
    return seconds


def chart_config():
    command = ["helm", "template", "check", "helm/tandem", "--namespace", "check", "--set", "polling.replicas=2"]
    command += ["--values", "helm/tandem/ci/polling-values.yaml", "--show-only", "templates/polling.yaml"]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return next(m for m in yaml.safe_load_all(rendered) if m["kind"] == "ConfigMap")["data"]["haproxy.cfg"]


def chart(folder, stack):
    nodes = [Node(f"node-{number}") for number in (1, 2, 3)]
    dns = Dns(list(nodes))
    names = [f"check-tandem-haproxy-{number}" for number in (0, 1)]
    peers = {name: f"127.0.0.1:{free_port()}" for name in names}
    proxies = []
    for name in names:
        config = quick(chart_config())
        port, status = free_port(), free_port()
        # The cluster's part: its name server, its addresses.
        for known, here in {
            "parse-resolv-conf": f"nameserver here 127.0.0.1:{dns.port}",
            "bind :3001": f"bind 127.0.0.1:{port}",
            "bind :8404": f"bind 127.0.0.1:{status}",
            "bind :10000": f"bind {peers[name]}",
            **{f"{peer}.check.svc.cluster.local:10000": address for peer, address in peers.items()},
        }.items():
            assert known in config, f"the chart's configuration has no '{known}'"
            config = config.replace(known, here)
        proxies.append(HaProxy(folder, config, port, status, POD_NAME=name))
        stack.callback(proxies[-1].stop)
    front, back = proxies

    def ready(proxy):
        return proxy.get("/ready", proxy.status)[0]

    for proxy in proxies:
        eventually("HAProxy is ready", lambda: ready(proxy) == 200)
    opened, seconds = sessions_survive(front, back, nodes)
    opened = [(sid, node) for sid, node in opened if node != nodes[0].name]

    # A node that comes is found, with another address.
    nodes[0] = Node("node-4")
    dns.nodes[0] = nodes[0]
    for proxy in proxies:
        eventually("a new node gets sessions", lambda: proxy.open()[1] == nodes[0].name)

    # One that is started again learns from the other what it knew, then the other may go.
    front.stop()
    assert all(back.poll(sid) == (node, True) for sid, node in opened), "sessions end with a HAProxy"
    front.start()
    sid, node = opened[0]
    eventually("a HAProxy that starts learns the sessions", lambda: front.poll(sid) == (node, True))
    back.stop()
    assert all(front.poll(sid) == (node, True) for sid, node in opened), "a HAProxy that started did not learn all sessions"

    for node in nodes:
        node.ready = False
    eventually("HAProxy without a node is not ready", lambda: ready(front) == 503)
    assert front.get("/live", front.status)[0] == 200
    nodes[1].ready = True
    eventually("HAProxy with a node is ready", lambda: ready(front) == 200)
    front.stop(lambda process: process.send_signal(subprocess.signal.SIGUSR1))
    return seconds


def main():
    for one in (compose, chart):
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            try:
                seconds = one(folder, stack)
            except AssertionError as fault:
                for log in pathlib.Path(folder).glob("*.log"):
                    print(*log.read_text().splitlines()[-15:], sep="\n", file=sys.stderr)
                sys.exit(f"deploy/balancers.py: {one.__name__}: {fault}")
            print(f"{one.__name__}: sessions stay with their node; a dead node's went elsewhere after {seconds:.1f} s")


if __name__ == "__main__":
    main()
