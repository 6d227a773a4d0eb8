{{/* Labels by which the release's server pods are found; `track` is added where one track is meant. */}}
{{- define "vllm.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "vllm.labels" -}}
{{ include "vllm.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "vllm.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary .Release.Name "default" .Values.serviceAccount.create) -}}
{{- end }}

{{- define "vllm.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag }}{{- end -}}
{{- end -}}
{{- end }}

{{/* failureThreshold of the start-up probe: the one given, or the first row that fits the model. */}}
{{- define "vllm.startupFailureThreshold" -}}
{{- $probe := .Values.startupProbe -}}
{{- $found := $probe.failureThreshold -}}
{{- range $probe.thresholds -}}
{{- if and (not $found) (le (float64 $.Values.model.parameters) (float64 .upTo)) -}}
{{- $found = .failureThreshold -}}
{{- end -}}
{{- end -}}
{{- if not $found -}}
{{- fail (printf "no row of startupProbe.thresholds fits model.parameters %v: set startupProbe.failureThreshold (it times periodSeconds is how long the model may load)" .Values.model.parameters) -}}
{{- end -}}
{{- int $found -}}
{{- end }}

{{- define "vllm.deploymentSpec" -}}
revisionHistoryLimit: 3
# Longer than the start-up probe allows: the probe decides that a start has failed.
progressDeadlineSeconds: {{ add 300 (mul (int .Values.startupProbe.periodSeconds) (include "vllm.startupFailureThreshold" . | int)) }}
strategy:
  {{- toYaml .Values.strategy | nindent 2 }}
{{- end }}
