#!/usr/bin/env python3
"""What must hold of the files under deploy/ and helm/ once they are rendered, each for a fault that was there.

Run by deploy/check, with helm and docker-compose on PATH. A check is a function; its docstring is the promise, and an
assertion that fails names what broke it.
"""

import functools
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHART = ROOT / "helm" / "tandem"
SECRET = "not-a-secret-but-long-enough-to-render"


@functools.cache
def chart(values, *arguments):
    """The chart's manifests with the values of ci/VALUES-values.yaml and further arguments of helm."""
    file = CHART / "ci" / f"{values}-values.yaml"
    command = ["helm", "template", CHART, "--name-template", "check", "--namespace", "check", "--values", file]
    rendered = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True).stdout
    return [manifest for manifest in yaml.safe_load_all(rendered) if manifest]


def every_values():
    return sorted(file.name.removesuffix("-values.yaml") for file in (CHART / "ci").glob("*-values.yaml"))


def kind(manifests, *kinds):
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def node_pod(manifests):
    """The pod of the nodes: its template's spec."""
    controllers = kind(manifests, "StatefulSet", "Deployment")
    return next(c for c in controllers if not c["metadata"]["name"].endswith("-haproxy"))["spec"]["template"]["spec"]


def containers(pod):
    return [*pod.get("initContainers", []), *pod["containers"]]


@functools.cache
def compose(**environment):
    """The services and the rest of docker-compose.yml, all profiles."""
    command = ["docker-compose", "--profile", "*", "config", "--format", "json"]
    settings = {"JWT_SECRET": SECRET} | environment
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=os.environ | settings)
    return json.loads(said.stdout)


def environment(manifests):
    """The node's variables by name, in order; a secret's is its whole entry."""
    container = next(c for c in node_pod(manifests)["containers"] if c["name"] == "tandem")
    return {entry["name"]: entry.get("value", entry) for entry in container["env"]}


def check_a_change_rolls_only_the_pods_that_read_it():
    """Every pod that restarts sends its clients away."""

    def templates(*arguments):
        """What is in each controller's pods."""
        manifests = kind(chart("polling", *arguments), "StatefulSet", "Deployment")
        return {m["metadata"]["name"]: m["spec"]["template"] for m in manifests}

    nodes, haproxy = "check-tandem", "check-tandem-haproxy"
    for changed, rolled in {
        "service.port=81": set(),
        "metrics.prometheusRule.enabled=true": set(),
        "replicas=3": set(),
        "ingress.className=other": set(),
        "settings.LOG=debug": {nodes},
        "polling.drainSeconds=60": {haproxy},
    }.items():
        before, after = templates(), templates("--set", changed)
        assert {name for name in before if before[name] != after[name]} == rolled, changed
    files = [(CHART / "files/litestream.yml").read_bytes(), (CHART / "files/alerts.yml").read_bytes()]
    pods = kind(chart("litestream"), "StatefulSet")[0]["spec"]["template"]["metadata"]["annotations"]
    assert [hashlib.sha256(file).hexdigest() in pods.values() for file in files] == [True, False]


def check_the_chart_asks_for_an_image_that_a_release_publishes():
    """Tag v1.2.3 publishes image 1.2.3, which the chart of that version runs unless it is told otherwise."""
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    crate = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    image = node_pod(chart("sqlite"))["containers"][0]["image"]
    assert image == f"registry.example.com/tandem:{crate}" and about["appVersion"] == crate, (image, about, crate)
    assert '--tag "$image:${TAG#v}"' in (ROOT / ".github/workflows/release.yml").read_text()
    assert "@sha256:" in node_pod(chart("litestream"))["containers"][0]["image"]


def check_every_container_says_what_it_needs():
    """A pod without requests is the first to be evicted, and one without a limit of memory takes its neighbours'."""
    for values in every_values():
        for controller in kind(chart(values), "StatefulSet", "Deployment"):
            for container in containers(controller["spec"]["template"]["spec"]):
                resources = container["resources"]
                assert {"cpu", "memory"} <= resources["requests"].keys() and "memory" in resources["limits"], container["name"]


def check_a_long_release_name_still_makes_pods():
    """A stateful set's name, a dash and a hash of ten characters are a label of its pods, of 63 at most."""
    for values in every_values():
        for controller in kind(chart(values, "--name-template", "a" * 53), "StatefulSet"):
            assert len(controller["metadata"]["name"]) + 11 <= 63, controller["metadata"]["name"]


def check_nobody_is_killed_while_it_ends():
    """The grace covers the sleep, the drain, what follows it (see docs/OPERATIONS.md) and Litestream's last copy."""
    after_drain, last_copy = 20, 15

    def grace(*arguments):
        return node_pod(chart(*arguments))["terminationGracePeriodSeconds"]

    assert grace("postgres") == 5 + 5 + 15 + after_drain
    assert grace("litestream") == 5 + 5 + 15 + after_drain + last_copy
    spans = ("drain.preStopSeconds=1", "drain.lagSeconds=2", "drain.seconds=4")
    assert grace("postgres", *(word for span in spans for word in ("--set", span))) == 1 + 2 + 4 + after_drain
    for name, service in compose()["services"].items():
        if name.startswith("tandem"):
            wanted = 5 + 15 + after_drain + ("litestream" in name) * last_copy
            assert service["stop_grace_period"] == f"{wanted}s", (name, service["stop_grace_period"])


def check_the_schemas_are_those_of_the_versions_that_the_chart_takes():
    """From the oldest on: what is only in newer ones must not be rendered."""
    oldest = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"]
    major, minor = re.fullmatch(r">=([0-9]+)\.([0-9]+)\.0-0", oldest).groups()
    assert f"\nOLDEST = ({major}, {minor})\n" in (ROOT / "tools/validate-manifests.py").read_text(), oldest


def check_the_console_is_routed_where_it_is_served():
    """It is at / and /assets/."""
    console = {"/": "Exact", "/assets": "Prefix"}

    def routed(values, *arguments):
        manifests = chart(values, *arguments)
        ingress = [path for i in kind(manifests, "Ingress") for r in i["spec"]["rules"] for path in r["http"]["paths"]]
        route = [match["path"] for h in kind(manifests, "HTTPRoute") for r in h["spec"]["rules"] for match in r["matches"]]
        paths = {path["path"]: path["pathType"] for path in ingress}
        return paths | {path["value"]: path["type"].removeprefix("Path") for path in route}

    for values in ("polling", "postgres"):
        assert console.items() <= routed(values).items(), values
        assert not console.items() & routed(values, "--set", "settings.CONSOLE=off").items(), values
        assert not console.items() & routed(values, "--set", "settings.CONSOLE=false").items(), values


def check_settings_reach_the_node_as_they_were_written():
    """A number is no 1.048576e+06, `off` is not false, and no name is there twice."""
    for values in every_values():
        container = next(c for c in node_pod(chart(values))["containers"] if c["name"] == "tandem")
        names = [entry["name"] for entry in container["env"]]
        assert len(names) == len(set(names)), values
        # The ones that `tandem.check` refuses in settings; LOG_FORMAT may be chosen there.
        refused = set(re.findall(r'^  "([A-Z_]+)" "', (CHART / "templates/_helpers.tpl").read_text(), re.M))
        given = yaml.safe_load((CHART / "ci" / f"{values}-values.yaml").read_text())
        chosen = {*given.get("settings", {}), *(entry["name"] for entry in given.get("extraEnv", []))}
        assert set(names) - refused - chosen == {"LOG_FORMAT"}, (values, set(names) - refused)
    told = environment(chart("litestream", "--set", "settings.LIMIT_USER_BYTES=8388608"))
    wanted = {
        "BCRYPT_COST": "10", "LIMIT_STATE_BYTES": "1048576", "LIMIT_USER_BYTES": "8388608",
        "OTEL_TRACES_SAMPLER_ARG": "0.05", "CONSOLE": "off", "LEGACY_TOKENS": "off", "LOG": "debug",
    }
    assert wanted == {name: told[name] for name in wanted}, told


def check_nodes_believe_the_proxies_before_them():
    """Otherwise all clients have one address, and share its limit of logins."""
    assert environment(chart("postgres"))["TRUSTED_PROXIES"] == "10.244.0.0/16,fd00:10:244::/56"
    assert "TRUSTED_PROXIES" not in environment(chart("polling", "--set-json", 'trustedProxies=["none"]'))
    networks = [part["subnet"] for part in compose()["networks"]["inside"]["ipam"]["config"]]
    for name in ("tandem-1", "tandem-2", "tandem-3"):
        assert compose()["services"][name]["environment"]["TRUSTED_PROXIES"].split(",") == networks, name


def check_a_read_only_root_comes_with_a_tmp():
    """SQLite, Litestream and libraries may write temporary files."""
    for values in every_values():
        pod = node_pod(chart(values))
        assert any(volume["name"] == "tmp" and "sizeLimit" in volume.get("emptyDir", {}) for volume in pod["volumes"]), values
        for container in containers(pod):
            assert container["securityContext"]["readOnlyRootFilesystem"], (values, container["name"])
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"], (values, container["name"])
    for name, service in compose()["services"].items():
        if service.get("read_only"):
            assert service.get("tmpfs") == ["/tmp"], f"compose's {name}"


def check_compose_volumes_belong_to_the_server():
    """A volume takes the owner of the folder it is mounted on; without one in the image that is root."""
    for name, service in compose()["services"].items():
        if not name.startswith("tandem"):
            continue
        dockerfiles = {"deploy/Dockerfile", service["build"]["dockerfile"]}
        made = "".join((ROOT / file).read_text() for file in dockerfiles)
        for volume in service["volumes"]:
            assert re.search(rf"^COPY .*--chown=65532:65532 \S+ {volume['target']}$", made, re.M), (name, volume["target"])


def check_compose_builds_an_image_after_what_it_is_made_from():
    """Images are built side by side, unless one is said to be another's context."""
    assert compose()["services"]["tandem-litestream"]["build"]["additional_contexts"] == {"tandem": "service:tandem-1"}
    assert "\nARG TANDEM=tandem\n" in (ROOT / "deploy/litestream.Dockerfile").read_text()


def alerts(manifests):
    rules = [rule for m in kind(manifests, "PrometheusRule") for group in m["spec"]["groups"] for rule in group["rules"]]
    return {rule["alert"]: rule for rule in rules if "alert" in rule}


def check_every_alert_has_a_runbook_and_a_test():
    """`runbook` is a heading of docs/OPERATIONS.md, `runbook_url` a URL, where the chart is told which."""
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs/OPERATIONS.md").read_text(), re.M)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    tested = (ROOT / "deploy/prometheus/alerts_test.yml").read_text()
    told = alerts(chart("postgres"))
    untold = alerts(chart("postgres", "--set", "metrics.prometheusRule.runbookBaseUrl="))
    assert told and told.keys() == untold.keys()
    for name, rule in told.items():
        runbook = rule["annotations"]["runbook"]
        assert runbook.removeprefix("docs/OPERATIONS.md#") in anchors, f"{name}: {runbook}"
        assert rule["annotations"]["runbook_url"] == f"https://git.example.com/tandem/blob/main/{runbook}", name
        assert "runbook_url" not in untold[name]["annotations"], name
        # Once silent, once with what it says.
        assert f"{{alertname: {name}, eval_time:" in tested and f"- alertname: {name}\n" in tested, f"{name} is not tested"


def check_compose_lives_beside_a_file_of_settings():
    """`.env` is the server's own file, with the server's defaults, and compose reads it, too."""
    defaults = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.M))
    for name, service in compose(**defaults | {"JWT_SECRET": SECRET})["services"].items():
        assert service.get("environment") == compose()["services"][name].get("environment"), name
    chosen = compose(TANDEM_DATABASE_URL="postgres://tandem:tandem@postgres/tandem")["services"]["tandem-1"]
    assert chosen["environment"]["DATABASE_URL"] == "postgres://tandem:tandem@postgres/tandem"


def haproxy_sections(config):
    """The lines of each section of a HAProxy configuration, by its heading."""
    sections, lines = {}, []
    for line in config.splitlines():
        text = line.split("#")[0].strip()
        if text and not line.startswith(" "):
            lines = sections[text] = []
        elif text:
            lines.append(text)
    return sections


def check_both_haproxies_do_the_same():
    """Time-outs, affinity and health checks are those of deploy/haproxy.cfg; only how nodes are found differs."""
    config = next(m for m in kind(chart("polling"), "ConfigMap") if "haproxy.cfg" in m["data"])["data"]["haproxy.cfg"]
    ours, theirs = haproxy_sections((ROOT / "deploy/haproxy.cfg").read_text()), haproxy_sections(config)
    of_its_own = ("bind", "stick-table", "default-server", "server")
    for section in ("defaults", "frontend tandem", "backend nodes"):
        shared = [[line for line in s[section] if not line.startswith(of_its_own)] for s in (ours, theirs)]
        assert shared[0] == shared[1], f"{section}: {set(shared[0]) ^ set(shared[1]) or 'another order'}"


def check_haproxy_has_room_for_a_rollout():
    """There is a slot for every old node that drains, every new one, and the surge."""
    for arguments, nodes in ((), 2), (("--set", "replicas=5"), 5), (("--set", "autoscaling.enabled=true"), 10):
        config = next(m for m in kind(chart("polling", *arguments), "ConfigMap") if "haproxy.cfg" in m["data"])
        slots = int(re.search(r"server-template node 1-([0-9]+) ", config["data"]["haproxy.cfg"])[1])
        assert slots >= 2 * nodes + 1, f"{slots} slots for {nodes} nodes"


def main():
    checks = {name: check for name, check in globals().items() if name.startswith("check_")}
    for name, check in checks.items():
        try:
            check()
        except AssertionError as fault:
            sys.exit(f"deploy/rendered.py: {name.removeprefix('check_').replace('_', ' ')}: {fault}")
    print(f"{len(checks)} promises of rendered files hold")


if __name__ == "__main__":
    main()
