{{/* The pod template of one track: (dict "root" $ "track" "stable"). */}}
{{- define "vllm.podTemplate" -}}
{{- $track := .track -}}
{{- with .root -}}
metadata:
  labels:
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- include "vllm.selectorLabels" . | nindent 4 }}
    vllm-rollout/track: {{ $track }}
  annotations:
    kubectl.kubernetes.io/default-container: vllm
    {{- with .Values.rollout.digest }}
    vllm-rollout/build: {{ . | quote }}
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "vllm.serviceAccountName" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  containers:
    - name: vllm
      image: {{ include "vllm.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      {{- include "vllm.command" . | nindent 6 }}
      env:
        {{- include "vllm.env" . | nindent 8 }}
      ports:
        - {name: http, containerPort: 8000, protocol: TCP}
      resources:
        {{- include "vllm.resources" . | trim | nindent 8 }}
      startupProbe:
        httpGet: {path: /health, port: http}
        periodSeconds: {{ .Values.startupProbe.periodSeconds }}
        timeoutSeconds: {{ .Values.startupProbe.timeoutSeconds }}
        failureThreshold: {{ include "vllm.startupFailureThreshold" . }}
      readinessProbe:
        httpGet: {path: /health, port: http}
        {{- toYaml .Values.readinessProbe | nindent 8 }}
      livenessProbe:
        httpGet: {path: /health, port: http}
        {{- toYaml .Values.livenessProbe | nindent 8 }}
      lifecycle:
        preStop:
          # The Service forgets the pod a moment after SIGTERM would have closed its port.
          exec: {command: [sleep, {{ .Values.drainSeconds | quote }}]}
      securityContext:
        {{- toYaml .Values.securityContext | nindent 8 }}
      volumeMounts:
        - {name: model-cache, mountPath: {{ .Values.modelCache.mountPath }}}
        - {name: shared-memory, mountPath: /dev/shm}
        - {name: tmp, mountPath: /tmp}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    {{- with .Values.modelCache }}
    - name: model-cache
      {{- if .existingClaim }}
      persistentVolumeClaim: {claimName: {{ .existingClaim }}}
      {{- else }}
      emptyDir: {sizeLimit: {{ .sizeLimit }}}
      {{- end }}
    {{- end }}
    - name: shared-memory
      emptyDir: {medium: Memory, sizeLimit: {{ .Values.sharedMemory }}}
    - name: tmp
      emptyDir: {}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- $release := dict "labelSelector" (dict "matchLabels" (include "vllm.selectorLabels" $.root | fromYaml)) }}
    {{- range . }}
    {{- list (merge (deepCopy .) (deepCopy $release)) | toYaml | nindent 4 }}
    {{- end }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "vllm.command" -}}
command:
  {{- toYaml .Values.command | nindent 2 }}
args:
  - {{ .Values.model.path | quote }}
  - {{ printf "--served-model-name=%s" .Values.model.name | quote }}
  - --host=0.0.0.0
  - --port=8000
  {{- with .Values.model.revision }}
  - {{ printf "--revision=%s" . | quote }}
  {{- end }}
  {{- if gt (int .Values.gpu.count) 1 }}
  - {{ printf "--tensor-parallel-size=%d" (int .Values.gpu.count) | quote }}
  {{- end }}
  {{- range .Values.extraArgs }}
  - {{ . | quote }}
  {{- end }}
{{- end }}

{{- define "vllm.env" -}}
# The user has no entry in the image's passwd file, and libraries ask for a name and a home.
- {name: USER, value: vllm}
- {name: HOME, value: {{ .Values.modelCache.mountPath }}}
- {name: HF_HOME, value: {{ .Values.modelCache.mountPath }}/huggingface}
{{- with .Values.model.tokenSecret }}
{{- if .name }}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ .name }}, key: {{ .key }}}}
{{- end }}
{{- end }}
{{- include "vllm.apiKeyEnv" . }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The bearer key, from its Secret; nothing where the server is open. */}}
{{- define "vllm.apiKeyEnv" }}
{{- with .Values.apiKeySecret }}
{{- if .name }}
- name: VLLM_API_KEY
  valueFrom: {secretKeyRef: {name: {{ .name }}, key: {{ .key }}}}
{{- end }}
{{- end }}
{{- end }}

{{- define "vllm.resources" -}}
{{- range $kind := list "requests" "limits" }}
{{ $kind }}:
  {{- $amounts := deepCopy (get $.Values.resources $kind | default dict) }}
  {{- if gt (int $.Values.gpu.count) 0 }}
  {{- $_ := set $amounts $.Values.gpu.resource (int $.Values.gpu.count) }}
  {{- end }}
  {{- toYaml $amounts | nindent 2 }}
{{- end }}
{{- end }}
