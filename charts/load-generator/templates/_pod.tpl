{{- define "load.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "load.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* A Job of the run: (dict "root" $ "component" "worker" "count" 3 "args" (list …)). */}}
{{- define "load.job" -}}
{{- $ := .root -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .name }}
  labels:
    {{- include "load.labels" $ | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  # All at once, and none a second time: a crash must be seen and never made up for.
  parallelism: {{ .count }}
  completions: {{ .count }}
  backoffLimit: 0
  activeDeadlineSeconds: {{ int $.Values.activeSeconds }}
  ttlSecondsAfterFinished: {{ int $.Values.ttlSeconds }}
  template:
    metadata:
      labels:
        {{- with $.Values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- include "load.labels" $ | nindent 8 }}
        app.kubernetes.io/component: {{ .component }}
      {{- with $.Values.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 10
      automountServiceAccountToken: false
      enableServiceLinks: false
      securityContext:
        runAsNonRoot: true
        runAsUser: 65532
        seccompProfile: {type: RuntimeDefault}
      containers:
        - name: locust
          image: {{ required "image is needed: REPOSITORY@sha256:…, with vllm-rollout in it" $.Values.image | quote }}
          imagePullPolicy: {{ $.Values.imagePullPolicy }}
          command: [python, -m, vllm_rollout.load.locust_command]
          args:
            {{- toYaml .args | nindent 12 }}
          env:
            # The user has no home in the image, and its files cannot be written.
            - {name: HOME, value: /tmp}
            - {name: PYTHONDONTWRITEBYTECODE, value: "1"}
            - name: VLLM_ROLLOUT_POD
              valueFrom: {fieldRef: {fieldPath: metadata.name}}
            {{- if and $.Values.apiKeySecret.name (eq .component "worker") }}
            - name: VLLM_ROLLOUT_API_KEY
              valueFrom: {secretKeyRef: {name: {{ $.Values.apiKeySecret.name }}, key: {{ $.Values.apiKeySecret.key }}}}
            {{- end }}
            {{- if and $.Values.caCertificates (eq .component "worker") }}
            - {name: VLLM_ROLLOUT_LOAD_CA_FILE, value: /ca/ca.pem}
            {{- end }}
          {{- if eq .component "master" }}
          ports:
            - {name: locust, containerPort: 5557, protocol: TCP}
            - {name: logs, containerPort: 8089, protocol: TCP}
          {{- end }}
          resources:
            {{- toYaml .resources | nindent 12 }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
          volumeMounts:
            - {name: results, mountPath: /results}
            - {name: tmp, mountPath: /tmp}
            {{- if eq .component "master" }}
            - {name: plan, mountPath: /plan, readOnly: true}
            {{- else if $.Values.caCertificates }}
            - {name: ca, mountPath: /ca, readOnly: true}
            {{- end }}
      volumes:
        - name: results
          emptyDir: {sizeLimit: {{ $.Values.resultsSize }}}
        - name: tmp
          emptyDir: {sizeLimit: 64Mi}
        {{- if eq .component "master" }}
        - name: plan
          configMap: {name: {{ $.Release.Name }}-plan}
        {{- else if $.Values.caCertificates }}
        - name: ca
          configMap:
            name: {{ $.Release.Name }}-plan
            items: [{key: ca.pem, path: ca.pem}]
        {{- end }}
      {{- with $.Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $.Values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $.Values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $.Values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $.Values.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "load.selector" . | nindent 14 }}
{{- end }}
