"""Holds rendered Kubernetes manifests (YAML on stdin) against every schema from 1.30, the oldest that the chart takes, to the newest.

Custom resources of the groups below have no schema in Kubernetes itself; any other resource without
one is an error. Says how many were checked, names each fault, exits 1 if there is one.
"""

import sys

import kubernetes_validate
import yaml
from kubernetes_validate.utils import all_versions, major_minor

CUSTOM_GROUPS = {"monitoring.coreos.com", "gateway.networking.k8s.io"}
OLDEST = (1, 30)


def versions():
    """Minor versions from OLDEST on, oldest first, as "1.30"."""
    minors = {major_minor(version) for version in all_versions()}
    numbered = {tuple(int(part) for part in minor.split(".")): minor for minor in minors}
    return [minor for number, minor in sorted(numbered.items()) if number >= OLDEST]


def main(name):
    manifests = [manifest for manifest in yaml.safe_load_all(sys.stdin) if manifest]
    native = [m for m in manifests if m["apiVersion"].split("/")[0] not in CUSTOM_GROUPS]
    faults = []
    for version in versions():
        for manifest in native:
            subject = f"{manifest['kind']} {manifest['metadata']['name']} (Kubernetes {version})"
            try:
                kubernetes_validate.validate(manifest, version, strict=True)
            except kubernetes_validate.ValidationError as fault:
                where = "/".join(str(part) for part in fault.path) or "top level"
                faults.append(f"{subject}: {where}: {fault.message}")
            except kubernetes_validate.SchemaNotFoundError as fault:
                faults.append(f"{subject}: {fault.message}")
    for fault in faults:
        print(f"{name}: {fault}", file=sys.stderr)
    if not native:
        print(f"{name}: nothing was rendered", file=sys.stderr)
    print(
        f"{name}: {len(native)} resources valid on {versions()[0]} to {versions()[-1]}, "
        f"{len(manifests) - len(native)} custom"
        if native and not faults
        else f"{name}: {len(faults)} faults"
    )
    return 1 if faults or not native else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
