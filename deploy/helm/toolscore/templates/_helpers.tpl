{{- define "toolscore.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "toolscore.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: toolscore
{{- end }}

{{- define "toolscore.gateway" -}}
app.kubernetes.io/name: toolscore
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end }}

{{- define "toolscore.executor" -}}
app.kubernetes.io/name: toolscore
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: executor
{{- end }}

{{- define "toolscore.image" -}}
{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
{{- end }}

{{- define "toolscore.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "toolscore.name" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "toolscore.hasDatabase" -}}
{{- if or .Values.database.url .Values.database.existingSecret }}yes{{ end }}
{{- end }}

{{- define "toolscore.hasRedis" -}}
{{- if or .Values.redis.url .Values.redis.existingSecret }}yes{{ end }}
{{- end }}

{{- define "toolscore.hasSeal" -}}
{{- if or .Values.seal.keys .Values.seal.existingSecret }}yes{{ end }}
{{- end }}

{{- /* What would work badly is said before anything is installed. */ -}}
{{- define "toolscore.check" -}}
{{- $most := ternary .Values.autoscaling.maxReplicas .Values.replicaCount .Values.autoscaling.enabled | int }}
{{- if and (gt $most 1) (not (and (include "toolscore.hasDatabase" .) (include "toolscore.hasRedis" .))) }}
{{- fail "several gateways need database.url (or database.existingSecret) and redis.url (or redis.existingSecret); one alone: --set replicaCount=1" }}
{{- end }}
{{- if and (gt $most 1) (not (include "toolscore.hasSeal" .)) }}
{{- fail "several gateways need seal.keys or seal.existingSecret: --set seal.keys=$(openssl rand -base64 32)" }}
{{- end }}
{{- if not (or .Values.adminKey.value .Values.adminKey.existingSecret) }}
{{- fail "nobody could come in: give adminKey.value or adminKey.existingSecret: --set adminKey.value=$(openssl rand -hex 32)" }}
{{- end }}
{{- if and .Values.adminKey.value (lt (len .Values.adminKey.value) 32) }}
{{- fail "adminKey.value has fewer than 32 characters: openssl rand -hex 32 makes one" }}
{{- end }}
{{- if ge (add 2 .Values.leaveSeconds .Values.graceSeconds | int) (.Values.terminationGracePeriodSeconds | int) }}
{{- fail "leaveSeconds + graceSeconds + 2 must be below terminationGracePeriodSeconds, or calls are cut off" }}
{{- end }}
{{- end }}

{{- define "toolscore.secretName" -}}
{{- $one := index .root.Values .part }}{{ $one.existingSecret | default (printf "%s-%s" (include "toolscore.name" .root) (kebabcase .part)) }}
{{- end }}

{{- define "toolscore.secrets" -}}
{{- if include "toolscore.hasDatabase" . }}
- name: TOOLSCORE_STORAGE__DATABASE_URL
  valueFrom: {secretKeyRef: {name: {{ include "toolscore.secretName" (dict "root" . "part" "database") }}, key: {{ .Values.database.key }}}}
{{- end }}
{{- if include "toolscore.hasRedis" . }}
- name: TOOLSCORE_STORAGE__REDIS_URL
  valueFrom: {secretKeyRef: {name: {{ include "toolscore.secretName" (dict "root" . "part" "redis") }}, key: {{ .Values.redis.key }}}}
{{- end }}
{{- if include "toolscore.hasSeal" . }}
- name: TOOLSCORE_STORAGE__SEAL_KEYS
  valueFrom: {secretKeyRef: {name: {{ include "toolscore.secretName" (dict "root" . "part" "seal") }}, key: {{ .Values.seal.key }}}}
{{- end }}
- name: ADMIN_KEY
  valueFrom: {secretKeyRef: {name: {{ include "toolscore.secretName" (dict "root" . "part" "adminKey") }}, key: {{ .Values.adminKey.key }}}}
{{- end }}
