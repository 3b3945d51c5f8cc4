#!/usr/bin/env python3
"""Writes the dashboards beside this file: one list of panels each, so that they stay readable.

    python3 deploy/grafana/dashboards.py            writes dashboards/*.json
    python3 deploy/grafana/dashboards.py --check    exits 1 if they are not what this file says
    python3 deploy/grafana/dashboards.py --list     prints every expression, one a line
"""

import json
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent / "dashboards"
OF = '{job=~"$job", instance=~"$instance"}'


def of(more):
    return '{job=~"$job", instance=~"$instance", ' + more + "}"


def rate(metric, more=None, by=None):
    inner = f"rate({metric}{of(more) if more else OF}[$__rate_interval])"
    return f"sum by ({by}) ({inner})" if by else f"sum ({inner})"


def quantile(q, metric):
    return f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket{OF}[$__rate_interval])))"


def quantiles(metric):
    return [(quantile(q, metric), name) for q, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))]


def panel(title, unit, queries, about, kind="timeseries", width=8):
    return {"title": title, "unit": unit, "queries": queries, "about": about, "kind": kind, "width": width}


CLUSTER = [
    panel("Connections", "short", [(f"sum (tandem_sockets{OF})", "devices")], "Devices that are connected now.", "stat", 6),
    panel("Nodes", "short", [(f"count (tandem_build_info{OF})", "nodes")], "Nodes that are scraped.", "stat", 6),
    panel("Store", "short", [(f"min (tandem_store_up{OF})", "up")], "1: the store answers every node.", "stat", 6),
    panel("Backplane", "short", [(f"min (tandem_backplane_up{OF})", "up")], "1: every node reaches the others over Redis.", "stat", 6),
    panel("Connections by node", "short", [(f"tandem_sockets{OF}", "{{instance}}")], "An uneven share is usual after a rolling restart and evens out as clients come and go."),
    panel("Imbalance", "percentunit", [(f"max (tandem_sockets{OF}) / (avg (tandem_sockets{OF}) > 0)", "fullest node, of the average")], "100 %: every node holds the same."),
    panel("Connects by transport", "cps", [(rate("tandem_connects_total", by="transport"), "{{transport}}")], "Polling clients that upgrade count as polling."),
    panel("Disconnects by reason", "cps", [(rate("tandem_disconnects_total", by="reason"), "{{reason}}")], "`slow_consumer` and `flood` are the server's own decisions."),
    panel("Users and channels by node", "short", [(f"tandem_users{OF}", "{{instance}}")], "Users with a device there; a node is subscribed to the channel of each."),
    panel("Events in and out", "cps", [(rate("tandem_events_received_total"), "received"), (rate("tandem_events_sent_total"), "sent")], "What devices send, and what is handed to sockets for it."),
    panel("Fan-out", "none", [(f"{rate('tandem_events_sent_total')} / ({rate('tandem_events_received_total')} > 0)", "sent for each received")], "How many sockets an event reaches, answers included."),
    panel("Refused", "cps", [(rate("tandem_events_refused_total", by="code"), "{{code}}"), (rate("tandem_refused_connects_total"), "connects")], "`internal` and `store_…` are the service's fault; the rest is a client that is wrong, or too quick."),
    panel("Commit to socket", "s", quantiles("tandem_delivery_seconds"), "From a change's commit to its hand-over to this node's sockets."),
    panel("Commit to socket, spread", "s", [(f"sum by (le) (increase(tandem_delivery_seconds_bucket{OF}[$__rate_interval]))", "{{le}}")], "Each column is a moment; brighter means more changes.", "heatmap"),
    panel("Nodes in Redis", "short", [(f"tandem_backplane_nodes{OF}", "{{instance}}")], "How many nodes each sees, itself included. Different lines that stay: they are on different Redis servers."),
    panel("Redis round trip", "s", quantiles("tandem_backplane_probe_seconds"), "A node's own probe through Redis, by one clock."),
]

NODE = [
    panel("TCP connections", "short", [(f"tandem_tcp_connections{OF}", "{{instance}} open"), (f"tandem_tcp_connections_limit{OF}", "{{instance}} limit")], "Beyond LIMIT_CONNECTIONS new ones are answered 503."),
    panel("Memory", "bytes", [(f"process_resident_memory_bytes{OF}", "{{instance}}")], "Resident memory of the process."),
    panel("Memory a connection", "bytes", [(f"process_resident_memory_bytes{OF} / (tandem_sockets{OF} > 0)", "{{instance}}")], "Falls as connections come; a rise at equal load is a leak."),
    panel("CPU", "short", [(f"rate(process_cpu_seconds_total{OF}[$__rate_interval])", "{{instance}}")], "Cores kept busy."),
    panel("Open files", "short", [(f"process_open_fds{OF}", "{{instance}} open"), (f"process_max_fds{OF}", "{{instance}} limit")], "Each connection is one."),
    panel("Backplane envelopes", "cps", [(rate("tandem_backplane_published_total", by="instance"), "{{instance}} out"), (rate("tandem_backplane_received_total", by="instance"), "{{instance}} in")], "What nodes tell each other."),
    panel("Backplane losses", "cps", [(rate("tandem_backplane_dropped_total", by="instance"), "{{instance}} given up"), (rate("tandem_backplane_overflowed_total", by="instance"), "{{instance}} overflowed"), (rate("tandem_backplane_decode_errors_total", by="instance"), "{{instance}} unreadable")], "All of it is made up for from the store."),
    panel("Holes and repairs", "cps", [(rate("tandem_seq_holes_total", by="instance"), "{{instance}} holes"), (rate("tandem_seq_repairs_total", by="instance"), "{{instance}} repairs")], "Changes that arrived out of order, and reads of the store that mended it."),
    panel("Asks", "cps", [(rate("tandem_store_asks_total", by="instance"), "{{instance}} asks"), (rate("tandem_store_asked_users_total", by="instance"), "{{instance}} users who had moved")], "The regular look for what no envelope told."),
]

STORE = [
    panel("Commit", "s", quantiles("tandem_store_commit_seconds"), "One batch: one transaction, one fsync."),
    panel("Batch size", "short", quantiles("tandem_store_commit_batch_size"), "Commands that shared a commit."),
    panel("Queue", "short", [(f"tandem_store_queue{OF}", "{{instance}}")], "Commands that wait for the next commit."),
    panel("Failed commits", "cps", [(rate("tandem_store_commit_failures_total", by="instance"), "{{instance}}")], "Each was answered `store_unavailable` or `store_full`."),
    panel("Session writes", "cps", [(rate("tandem_session_writes_total", by="outcome"), "{{outcome}}")], "`duplicate`: repeats under an opId."),
    panel("Copy's age", "s", [(f"tandem_replica_age_seconds{OF}", "{{instance}}")], "Seconds since Litestream's copy held everything; 0 without Litestream."),
    panel("Waiting for the copy", "s", quantiles("tandem_replica_sync_seconds"), "With DURABILITY=replicated: what it adds to an ack."),
    panel("Messages", "cps", [(rate("tandem_messages_total", by="outcome"), "{{outcome}}")], "Device messages, by what became of them."),
    panel("Messages that wait", "short", [(f"max (tandem_mailbox_messages{OF})", "messages")], "In the store, for devices that are offline."),
    panel("Oldest message", "s", [(f"max (tandem_mailbox_oldest_seconds{OF})", "age")], "They expire after 7 days at most."),
]

CLIENTS = [
    panel("Restores by mode", "cps", [(rate("tandem_restores_total", by="mode"), "{{mode}}")], "`delta`: the client named its position and got only what changed."),
    panel("Restore time", "s", quantiles("tandem_restore_seconds"), "From CONNECT to session-restored."),
    panel("Session cache", "cps", [(rate("tandem_session_cache_total", by="outcome"), "{{outcome}}")], "Big restores looked for in Redis."),
    panel("Coalesced for slow devices", "cps", [(rate("tandem_outbox_coalesced_total"), "events")], "Replaced by a newer one while they waited."),
    panel("Slow consumers", "cps", [(rate("tandem_disconnects_total", 'reason="slow_consumer"'), "cut")], "Devices that did not read what was sent to them."),
    panel("Full inboxes", "cps", [(rate("tandem_inbox_full_total"), "refused events")], "A device that sends more than is handled."),
    panel("Logins", "cps", [(rate("tandem_logins_total", by="outcome"), "{{outcome}}")], "`throttled`: too many tries."),
    panel("Token refreshes", "cps", [(rate("tandem_token_refreshes_total", by="outcome"), "{{outcome}}")], "`reused`: a refresh token was used twice and its login ended."),
]

DASHBOARDS = {
    "tandem-cluster": ("Tandem / Cluster", CLUSTER),
    "tandem-node": ("Tandem / Node", NODE),
    "tandem-store": ("Tandem / Store and durability", STORE),
    "tandem-clients": ("Tandem / Clients", CLIENTS),
}


def variable(name, query):
    return {
        "name": name, "label": name.capitalize(), "type": "query", "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name}, "includeAll": True, "multi": True, "refresh": 2, "sort": 1,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def rendered(uid, title, panels):
    placed, x, y, row = [], 0, 0, 0
    for number, one in enumerate(panels, 1):
        height = 4 if one["kind"] == "stat" else 8
        if x + one["width"] > 24:
            x, y, row = 0, y + row, 0
        options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
        if one["kind"] == "heatmap":
            options = {"calculate": False, "yAxis": {"unit": one["unit"]}, "color": {"scheme": "Oranges"}}
        elif one["kind"] == "stat":
            options = {"reduceOptions": {"calcs": ["lastNotNull"]}}
        placed.append({
            "id": number, "type": one["kind"], "title": one["title"], "description": one["about"],
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "gridPos": {"x": x, "y": y, "w": one["width"], "h": height},
            "fieldConfig": {"defaults": {"unit": one["unit"], "min": 0, "custom": {"fillOpacity": 10, "showPoints": "never"}}, "overrides": []},
            "options": options,
            "targets": [
                {"refId": chr(65 + place), "expr": expression, "legendFormat": legend,
                 "format": "heatmap" if one["kind"] == "heatmap" else "time_series"}
                for place, (expression, legend) in enumerate(one["queries"])
            ],
        })
        x, row = x + one["width"], max(row, height)
    links = [{"type": "dashboards", "tags": ["tandem"], "title": "Tandem", "asDropdown": True, "includeVars": True, "keepTime": True}]
    data = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return {
        "uid": uid, "title": title, "tags": ["tandem"], "schemaVersion": 39, "editable": True, "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"}, "links": links, "panels": placed,
        "templating": {"list": [data, variable("job", "label_values(tandem_build_info, job)"),
                                variable("instance", 'label_values(tandem_build_info{job=~"$job"}, instance)')]},
    }


def main(mode):
    stale = []
    for uid, (title, panels) in DASHBOARDS.items():
        if mode == "--list":
            print(*(expression for one in panels for expression, _ in one["queries"]), sep="\n")
            continue
        text = json.dumps(rendered(uid, title, panels), indent=1) + "\n"
        file = FOLDER / f"{uid}.json"
        if mode == "--check":
            if not file.exists() or file.read_text() != text:
                stale.append(file.name)
        else:
            FOLDER.mkdir(exist_ok=True)
            file.write_text(text)
    if stale:
        sys.exit(f"not what dashboards.py says: {', '.join(stale)}; run deploy/grafana/dashboards.py")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
