{{- /* What every purpose reads: Helm keeps its history in Secrets. */ -}}
{{- define "roles.read" -}}
- {apiGroups: [""], resources: [secrets], verbs: [get, list]}
- {apiGroups: [""], resources: [pods, events], verbs: [get, list]}
- {apiGroups: [""], resources: [pods/log], verbs: [get]}
# Whether what runs is what was rendered for the build, and how many pods an autoscaler wants.
- {apiGroups: [apps], resources: [deployments, statefulsets], verbs: [get, list]}
- {apiGroups: [autoscaling], resources: [horizontalpodautoscalers], verbs: [list]}
- {apiGroups: [keda.sh], resources: [scaledobjects], verbs: [list]}
# How a ramp by traffic has divided it.
- {apiGroups: [gateway.networking.k8s.io], resources: [httproutes], verbs: [get]}
# Reaching a server from outside the cluster, through the API server.
- {apiGroups: [""], resources: [services], verbs: [get]}
- {apiGroups: [""], resources: [pods/portforward], verbs: [get, create]}
# CPU and memory of pods, where no Prometheus has them. No right to pods/proxy: servers' metrics come
# by port-forward.
- {apiGroups: [metrics.k8s.io], resources: [pods], verbs: [list]}
# Before a deployment: whether what the pods need is there.
- {apiGroups: [""], resources: [namespaces, persistentvolumeclaims], verbs: [get]}
# Also the suite's own evidence and journal, for status and history.
- {apiGroups: [""], resources: [configmaps], verbs: [get, list]}
- {apiGroups: [""], resources: [resourcequotas, limitranges], verbs: [list]}
{{- end }}

{{- /* What the suite keeps in the cluster, evidence and journal, and the lease of a model. The API
group vllm-rollout is not one of the API server: the admission policy asks who has these rights. */ -}}
{{- define "roles.state" -}}
- {apiGroups: [""], resources: [configmaps], verbs: [create, update]}
- {apiGroups: [vllm-rollout], resources: [documents], verbs: [create, update]}
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create]}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, update, delete]
  {{- with include "roles.leases" . | trim }}{{ . | nindent 2 }}{{ end }}
{{- end }}

{{- /* The objects of the chart vllm-deployment, and what Helm waits for. Whoever may create cannot be
held to names by RBAC. */ -}}
{{- define "roles.release" -}}
{{- range $group, $resources := dict
  "" (list "services" "serviceaccounts")
  "apps" (list "deployments")
  "policy" (list "poddisruptionbudgets")
  "autoscaling" (list "horizontalpodautoscalers")
  "networking.k8s.io" (list "networkpolicies")
  "monitoring.coreos.com" (list "servicemonitors") }}
- apiGroups: [{{ $group | quote }}]
  resources: {{ toJson $resources }}
  verbs: [get, list, watch, create]
- apiGroups: [{{ $group | quote }}]
  resources: {{ toJson $resources }}
  verbs: [update, patch, delete]
  {{- with include "roles.objects" $ | trim }}{{ . | nindent 2 }}{{ end }}
{{- end }}
- {apiGroups: [apps], resources: [replicasets], verbs: [get, list, watch]}
# A ramp by traffic, and its way back, move the weights of a route.
- {apiGroups: [gateway.networking.k8s.io], resources: [httproutes], verbs: [get, patch]}
- {apiGroups: [""], resources: [pods], verbs: [watch]}
- {apiGroups: [""], resources: [secrets], verbs: [create, update, patch]}
{{- end }}

{{- /* The objects of the releases, where their models are given. */ -}}
{{- define "roles.objects" -}}
{{- $names := list -}}
{{- range $model := .Values.models }}
{{- range $.Values.environments }}
{{- $release := printf "%s-%s" $model . }}
{{- $names = concat $names (list $release (printf "%s-canary" $release)) }}
{{- end }}
{{- end }}
{{- with $names }}
resourceNames: {{ toJson . }}
{{- end }}
{{- end }}

{{- /* The leases of a rollout and of a standing watch, by the names that the suite gives them. */ -}}
{{- define "roles.leases" -}}
{{- $keys := .Values.models -}}
{{- range $model := .Values.models }}
{{- range $.Values.environments }}
{{- $keys = append $keys (printf "watch/%s-%s" $model .) }}
{{- end }}
{{- end }}
{{- $names := list -}}
{{- range $keys }}
{{- $names = append $names (printf "vllm-rollout-%s" (sha256sum . | trunc 32)) }}
{{- end }}
{{- with $names }}
resourceNames: {{ toJson . }}
{{- end }}
{{- end }}

{{- define "roles.gate" -}}
{{ include "roles.read" . }}
{{- end }}

{{- /* Signs: reads what it signs, and appends to the chain of decisions. */ -}}
{{- define "roles.qa" -}}
{{ include "roles.read" . }}
- {apiGroups: [""], resources: [configmaps], verbs: [create, update]}
- {apiGroups: [vllm-rollout], resources: [sign-offs], verbs: [create, update]}
{{- end }}

{{- define "roles.watch" -}}
{{ include "roles.read" . }}
{{ include "roles.state" . }}
{{ include "roles.release" . }}
{{- end }}

{{- define "roles.promote" -}}
{{ include "roles.watch" . }}
- {apiGroups: [""], resources: [secrets], verbs: [delete]}
# Before a deployment, in a dry run: whether the pods of its Deployments would be admitted.
- {apiGroups: [""], resources: [pods], verbs: [create]}
{{- end }}

{{- /* The objects of the chart load-generator; what its Job owns goes with it. */ -}}
{{- define "roles.load" -}}
- {apiGroups: [batch], resources: [jobs], verbs: [get, create, delete]}
- {apiGroups: [""], resources: [configmaps, services], verbs: [create]}
- {apiGroups: [networking.k8s.io], resources: [networkpolicies], verbs: [create]}
- {apiGroups: [""], resources: [pods, events], verbs: [list]}
# The workers' request logs are fetched through the API server.
- {apiGroups: [""], resources: [pods/portforward], verbs: [get, create]}
{{- end }}

{{- /* Who is bound to the Role of a purpose: (dict "root" $ "purpose" "watch"). */ -}}
{{- define "roles.subjects" -}}
{{- $subjects := list -}}
{{- if ne .purpose "qa" }}
{{- $subjects = append $subjects (dict "kind" "ServiceAccount" "name" (printf "vllm-rollout-%s" .purpose)) }}
{{- end }}
{{- range (index .root.Values .purpose).subjects }}
{{- $subjects = append $subjects (deepCopy .) }}
{{- end }}
{{- range $subjects }}
{{- if eq .kind "ServiceAccount" }}
{{- if not .namespace }}{{ $_ := set . "namespace" $.root.Release.Namespace }}{{ end }}
{{- else if not .apiGroup }}{{ $_ := set . "apiGroup" "rbac.authorization.k8s.io" }}
{{- end }}
{{- end }}
{{- toYaml $subjects }}
{{- end }}

{{- /* Writes in this namespace: (dict "root" $ "groups" "" "resources" "configmaps"). */ -}}
{{- define "roles.here" -}}
namespaceSelector:
  matchLabels: {kubernetes.io/metadata.name: {{ .root.Release.Namespace }}}
resourceRules:
  - apiGroups: [{{ .groups | quote }}]
    apiVersions: ["*"]
    operations: [CREATE, UPDATE, DELETE]
    resources: [{{ .resources | quote }}]
    scope: Namespaced
{{- end }}

{{- /* CEL: whether one of them asks: (dict "users" (list …) "groups" (list …)). */ -}}
{{- define "roles.is" -}}
request.userInfo.username in {{ toJson .users }}
{{- with .groups }} || (has(request.userInfo.groups) && request.userInfo.groups.exists(g, g in {{ toJson . }})){{ end }}
{{- end }}

{{- /* A variable of a policy: the images that `variables.pod` names. A volume may be one, too. */ -}}
{{- define "roles.images" -}}
- name: images
  expression: >-
    variables.pod.containers.map(c, c.image)
    + variables.pod.?initContainers.orValue([]).map(c, c.image)
    + variables.pod.?volumes.orValue([]).filter(v, has(v.image)).map(v, v.image.reference)
{{- end }}
