{{- define "tandem.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "tandem.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: node
{{- end }}

{{- define "tandem.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "tandem.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* What would lose data or serve nobody is refused here, with the value to change. */}}
{{- define "tandem.check" -}}
{{- if not .Values.image.repository }}
{{- fail "image.repository must name the server's image: ghcr.io/OWNER/REPOSITORY of the repository whose release you run, or your own registry's." }}
{{- end }}
{{- $several := or (gt (int .Values.replicas) 1) .Values.autoscaling.enabled }}
{{- if and (eq .Values.storage.mode "sqlite") $several }}
{{- fail "storage.mode sqlite takes one node: two writers on one volume, or one Litestream copy, destroy it. Set replicas to 1 and autoscaling.enabled to false, or use storage.mode postgres." }}
{{- end }}
{{- if and (eq .Values.storage.mode "postgres") (not .Values.storage.postgres.existingSecret) }}
{{- fail "storage.postgres.existingSecret must name a secret with the key database-url." }}
{{- end }}
{{- if and $several (not .Values.redis.existingSecret) }}
{{- fail "More than one node needs Redis: redis.existingSecret must name a secret with the key redis-url." }}
{{- end }}
{{- if not .Values.allowedOrigins }}
{{- fail "allowedOrigins must be chosen: a list of origins, or [\"*\"] for any." }}
{{- end }}
{{- if not .Values.secret.existingSecret }}
{{- fail "secret.existingSecret must name a secret with the key jwt-secret (kubectl create secret generic tandem --from-literal=jwt-secret=$(openssl rand -hex 32))." }}
{{- end }}
{{- if and (eq .Values.storage.sqlite.durability "replicated") (not .Values.storage.sqlite.litestreamUrl) }}
{{- fail "storage.sqlite.durability replicated needs storage.sqlite.litestreamUrl." }}
{{- end }}
{{- if and (or .Values.ingress.enabled .Values.httpRoute.enabled .Values.polling.enabled) (not .Values.trustedProxies) }}
{{- fail "trustedProxies must name the networks that the ingress, the gateway or HAProxy connect from, most often the cluster's pod network (such as [\"10.244.0.0/16\"]): without it all clients have one address and share its limit of logins. [\"none\"] if the nodes see clients' own addresses." }}
{{- end }}
{{- if and (has "none" .Values.trustedProxies) (gt (len .Values.trustedProxies) 1) }}
{{- fail "trustedProxies is [\"none\"] or a list of networks, not both." }}
{{- end }}
{{- $owned := dict
  "HOST" "nothing: it is fixed"
  "PORT" "nothing: it is fixed, see service.port"
  "METRICS_PORT" "metrics.port"
  "NODE_ID" "nothing: it is the pod's name"
  "ALLOWED_ORIGINS" "allowedOrigins"
  "TRUSTED_PROXIES" "trustedProxies"
  "JWT_SECRET" "secret.existingSecret"
  "JWT_SECRET_PREVIOUS" "secret.existingSecret"
  "DATABASE_URL" "storage"
  "REDIS_URL" "redis.existingSecret"
  "LITESTREAM_SOCKET" "storage.sqlite.litestreamUrl"
  "DURABILITY" "storage.sqlite.durability"
  "DRAIN_SECONDS" "drain.seconds"
  "DRAIN_LAG_SECONDS" "drain.lagSeconds"
}}
{{- range $name, $value := .Values.settings }}
{{- with get $owned $name }}
{{- fail (printf "settings.%s is the chart's to set: use %s instead." $name .) }}
{{- end }}
{{- end }}
{{- range .Values.extraEnv }}
{{- if or (hasKey $owned .name) (hasKey $.Values.settings .name) }}
{{- fail (printf "extraEnv: %s is set already, by settings or by the chart itself." .name) }}
{{- end }}
{{- end }}
{{- if and .Values.polling.enabled .Values.settings.TLS_CERT }}
{{- fail "polling speaks plain HTTP to the nodes: leave settings.TLS_CERT out, and end TLS before HAProxy." }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) }}
{{- fail "ingress.hosts must name a host." }}
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
{{- fail "httpRoute.parentRefs must name a gateway." }}
{{- end }}
{{- end }}

{{/*
A setting as the node reads it. Every number of a values file is a float, which from a million on would be written
1e+06; and YAML reads `off` as false.
*/}}
{{- define "tandem.setting" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ printf "%.0f" . }}{{ else if kindIs "bool" . }}{{ ternary "on" "off" . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{/* Not empty where nodes serve the console, at / and /assets/. */}}
{{- define "tandem.console" -}}
{{- if ne (include "tandem.setting" (dig "CONSOLE" "on" .Values.settings)) "off" }}on{{ end }}
{{- end }}

{{/* Not empty where Litestream runs beside the node. */}}
{{- define "tandem.litestream" -}}
{{- if eq .Values.storage.mode "sqlite" }}{{ .Values.storage.sqlite.litestreamUrl }}{{ end }}
{{- end }}

{{- define "tandem.podSpec" -}}
serviceAccountName: {{ include "tandem.fullname" . }}
automountServiceAccountToken: false
# The sleep before SIGTERM, the two spans of the drain, then 6 s at most for clients to come back elsewhere or be announced
# as gone, 10 for tasks to end, 2 for traces, and some for the store; behind all of that Litestream's last copy.
terminationGracePeriodSeconds: {{ add .Values.drain.preStopSeconds .Values.drain.lagSeconds .Values.drain.seconds 20 (ternary 15 0 (ne (include "tandem.litestream" .) "")) }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .Values.topologySpread.enabled }}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "tandem.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- $litestream := include "tandem.litestream" . }}
{{- if $litestream }}
initContainers:
  - name: restore
    image: {{ .Values.storage.sqlite.litestreamImage }}
    args: [restore, -config, /etc/litestream/litestream.yml, -if-db-not-exists, -if-replica-exists, /data/tandem.db]
    securityContext: {{- include "tandem.containerSecurity" . | nindent 6 }}
    {{- include "tandem.litestreamEnv" . | nindent 4 }}
    resources: {{- toYaml .Values.storage.sqlite.litestreamResources | nindent 6 }}
    volumeMounts: {{- include "tandem.litestreamMounts" . | nindent 6 }}
  # A native sidecar: started before the node, ended after it, so that the last commits are copied.
  - name: litestream
    image: {{ .Values.storage.sqlite.litestreamImage }}
    restartPolicy: Always
    args: [replicate, -config, /etc/litestream/litestream.yml]
    securityContext: {{- include "tandem.containerSecurity" . | nindent 6 }}
    {{- include "tandem.litestreamEnv" . | nindent 4 }}
    resources: {{- toYaml .Values.storage.sqlite.litestreamResources | nindent 6 }}
    volumeMounts: {{- include "tandem.litestreamMounts" . | nindent 6 }}
{{- end }}
containers:
  - name: tandem
    image: {{ include "tandem.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    securityContext: {{- include "tandem.containerSecurity" . | nindent 6 }}
    ports:
      - {name: http, containerPort: 3001}
      - {name: metrics, containerPort: {{ .Values.metrics.port }}}
    env:
      - {name: HOST, value: "0.0.0.0"}
      - {name: PORT, value: "3001"}
      - {name: METRICS_PORT, value: {{ .Values.metrics.port | quote }}}
      {{- if not .Values.settings.LOG_FORMAT }}
      - {name: LOG_FORMAT, value: json}
      {{- end }}
      - {name: DRAIN_SECONDS, value: {{ .Values.drain.seconds | quote }}}
      - {name: DRAIN_LAG_SECONDS, value: {{ .Values.drain.lagSeconds | quote }}}
      - {name: ALLOWED_ORIGINS, value: {{ ternary "" (join "," .Values.allowedOrigins) (has "*" .Values.allowedOrigins) | quote }}}
      {{- if and .Values.trustedProxies (not (has "none" .Values.trustedProxies)) }}
      - {name: TRUSTED_PROXIES, value: {{ join "," .Values.trustedProxies | quote }}}
      {{- end }}
      - name: NODE_ID
        valueFrom: {fieldRef: {fieldPath: metadata.name}}
      - name: JWT_SECRET
        valueFrom: {secretKeyRef: {name: {{ .Values.secret.existingSecret }}, key: jwt-secret}}
      - name: JWT_SECRET_PREVIOUS
        valueFrom: {secretKeyRef: {name: {{ .Values.secret.existingSecret }}, key: jwt-secret-previous, optional: true}}
      {{- if eq .Values.storage.mode "sqlite" }}
      - {name: DATABASE_URL, value: "sqlite:///data/tandem.db"}
      {{- if $litestream }}
      - {name: LITESTREAM_SOCKET, value: /data/litestream.sock}
      - {name: DURABILITY, value: {{ .Values.storage.sqlite.durability }}}
      {{- end }}
      {{- else }}
      - name: DATABASE_URL
        valueFrom: {secretKeyRef: {name: {{ .Values.storage.postgres.existingSecret }}, key: database-url}}
      {{- end }}
      {{- with .Values.redis.existingSecret }}
      - name: REDIS_URL
        valueFrom: {secretKeyRef: {name: {{ . }}, key: redis-url}}
      {{- end }}
      {{- with .Values.extraEnv }}{{ toYaml . | nindent 6 }}{{ end }}
      {{- range $name, $value := .Values.settings }}
      - {name: {{ $name }}, value: {{ include "tandem.setting" $value | quote }}}
      {{- end }}
    {{- with .Values.extraEnvFrom }}
    envFrom: {{- toYaml . | nindent 6 }}
    {{- end }}
    # Liveness looks at nothing but the process: a store that is away must not restart every pod at once. All on the port
    # of metrics: the other closes what comes beyond LIMIT_CONNECTIONS and some more, so that a pod would be killed for
    # being full, and it speaks TLS where settings.TLS_CERT says so.
    startupProbe:
      httpGet: {path: /api/health/live, port: metrics}
      periodSeconds: 2
      failureThreshold: 60
    livenessProbe:
      httpGet: {path: /api/health/live, port: metrics}
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: 6
    readinessProbe:
      httpGet: {path: /api/health/ready, port: metrics}
      periodSeconds: 2
      timeoutSeconds: 2
      failureThreshold: 2
    {{- if .Values.drain.preStopSeconds }}
    lifecycle:
      preStop:
        sleep: {seconds: {{ .Values.drain.preStopSeconds }}}
    {{- end }}
    resources: {{- toYaml .Values.resources | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      {{- if eq .Values.storage.mode "sqlite" }}
      - {name: data, mountPath: /data}
      {{- end }}
      {{- with .Values.extraVolumeMounts }}{{ toYaml . | nindent 6 }}{{ end }}
volumes:
  # The one folder beside /data that can be written: what asks for a temporary file fails without it.
  - name: tmp
    emptyDir: {sizeLimit: 64Mi}
  {{- if $litestream }}
  - name: litestream
    configMap: {name: {{ include "tandem.fullname" . }}-litestream}
  {{- end }}
  {{- with .Values.extraVolumes }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}

{{- define "tandem.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What files/litestream.yml leaves to the environment. */}}
{{- define "tandem.litestreamEnv" -}}
env:
  - {name: TANDEM_DATABASE, value: /data/tandem.db}
  - {name: LITESTREAM_SOCKET, value: /data/litestream.sock}
  - {name: LITESTREAM_URL, value: {{ .Values.storage.sqlite.litestreamUrl | quote }}}
{{- with .Values.storage.sqlite.litestreamEnvSecret }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end }}

{{- define "tandem.litestreamMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: data, mountPath: /data}
- {name: litestream, mountPath: /etc/litestream, readOnly: true}
{{- with .Values.extraVolumeMounts }}{{ toYaml . | nindent 0 }}{{ end }}
{{- end }}

{{- define "tandem.podMeta" -}}
labels: {{- include "tandem.labels" . | nindent 2 }}
  app.kubernetes.io/component: node
{{- if or (include "tandem.litestream" .) .Values.podAnnotations }}
annotations:
  {{- if include "tandem.litestream" . }}
  # Of what a pod reads when it starts and a change of which does not roll it by itself, as one of its environment does.
  checksum/litestream: {{ .Files.Get "files/litestream.yml" | sha256sum }}
  {{- end }}
  {{- with .Values.podAnnotations }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}
{{- end }}

{{/* Where clients' connections go: the nodes, or HAProxy before them. */}}
{{- define "tandem.entrance" -}}
{{ if .Values.polling.enabled }}{{ include "tandem.haproxy" . }}{{ else }}{{ include "tandem.fullname" . }}{{ end }}
{{- end }}

{{/* At most 50 characters, too: a stateful set's name and 11 more are the label of its pods, which may have 63. */}}
{{- define "tandem.haproxy" -}}
{{ include "tandem.fullname" . | trunc 42 | trimSuffix "-" }}-haproxy
{{- end }}
