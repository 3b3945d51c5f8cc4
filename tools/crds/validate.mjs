// Holds the custom resources among rendered manifests (YAML on stdin) against the schemas of their operators, which
// Kubernetes itself does not know. Prints every fault and exits 1 if there is one.
import { readFileSync } from "node:fs";

import { parseAllDocuments } from "yaml";

const MODELS = {
  "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
  "gateway.networking.k8s.io/v1": "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1",
};
const NATIVE = /^(v1|(apps|autoscaling|batch|policy|networking\.k8s\.io|rbac\.authorization\.k8s\.io)\/.*)$/;

const name = process.argv[2];
const faults = [];
let seen = 0;
for (const document of parseAllDocuments(readFileSync(0, "utf8"))) {
  const manifest = document.toJS();
  if (!manifest || NATIVE.test(manifest.apiVersion)) continue;
  seen += 1;
  const subject = `${manifest.kind} ${manifest.metadata?.name}`;
  const from = MODELS[manifest.apiVersion];
  const models = from ? await import(`${from}/${manifest.kind}`) : {};
  const model = models[manifest.kind] ?? models.default?.[manifest.kind];
  if (!model) {
    faults.push(`${subject}: no schema for ${manifest.apiVersion}`);
    continue;
  }
  try {
    new model(manifest).validate();
  } catch (error) {
    faults.push(`${subject}: ${error.message}`);
  }
}
for (const fault of faults) console.error(`${name}: ${fault}`);
if (faults.length > 0) process.exit(1);
if (seen > 0) console.log(`${name}: ${seen} custom resources valid`);
