#!/usr/bin/env python3
"""Writes helm/tandem/README.md from the chart's values, or with --check says whether it is current.

What a `# -- ` comment in values.yaml says belongs to the key below it.
"""

import re
import sys
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parent.parent / "helm" / "tandem"
INTRODUCTION = """# Tandem's Helm chart

One node on SQLite with a volume of its own, or any number of nodes on PostgreSQL with Redis between them. It brings no
database and no Redis: name the secrets that hold their URLs.

```sh
kubectl create secret generic tandem --from-literal=jwt-secret="$(openssl rand -hex 32)"
helm install tandem helm/tandem --set image.repository=ghcr.io/OWNER/REPOSITORY \\
  --set secret.existingSecret=tandem --set-json 'allowedOrigins=["*"]'
helm test tandem
```

The image is yours to name, since the chart does not know whose release you run: OWNER/REPOSITORY is where its source is
(`.github/workflows/release.yml` publishes there), and an image of your own is made by `docker build --file
deploy/Dockerfile`.

`helm test` connects two devices, changes a session on one and waits for it on the other. Complete sets of values, all
of them rendered and checked against Kubernetes 1.30 and newer, are in [`ci/`](ci). What to do when something is wrong:
[docs/OPERATIONS.md](../../docs/OPERATIONS.md). This page is made from `values.yaml` by `deploy/chart-readme.py`.

## Values

| value | default | what it is |
|---|---|---|
"""


def descriptions(text):
    """What is said above each key, by its dotted path."""
    said, path, waiting = {}, [], []
    for line in text.splitlines():
        comment = re.match(r"\s*# (?:-- )?(.*)", line)
        if comment:
            waiting.append(comment[1])
            continue
        key = re.match(r"( *)([A-Za-z]+):", line)
        if key:
            path = [*path[: len(key[1]) // 2], key[2]]
            if waiting:
                said[".".join(path)] = " ".join(waiting)
        waiting = []
    return said


def rows(values, said, path=""):
    for key, value in values.items():
        where = f"{path}{key}"
        if isinstance(value, dict) and value and not where.lower().endswith((".labels", "resources")):
            if where in said:
                yield where, "", said[where]
            yield from rows(value, said, f"{where}.")
        else:
            shown = yaml.safe_dump(value, default_flow_style=True).splitlines()[0]
            yield where, f"`{shown}`", said.get(where, "")


def main():
    text = (CHART / "values.yaml").read_text()
    table = (f"| `{where}` | {default} | {what} |\n" for where, default, what in rows(yaml.safe_load(text), descriptions(text)))
    readme = INTRODUCTION + "".join(table)
    file = CHART / "README.md"
    if sys.argv[1:] == ["--check"]:
        if not file.exists() or file.read_text() != readme:
            sys.exit(f"{file} is not what deploy/chart-readme.py makes of values.yaml")
    else:
        file.write_text(readme)


main()
