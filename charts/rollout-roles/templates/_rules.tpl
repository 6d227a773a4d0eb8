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
# Before a deployment: whether what the pods need is there.
- {apiGroups: [""], resources: [namespaces, persistentvolumeclaims], verbs: [get]}
# Also the suite's own evidence and journal, for status and history.
- {apiGroups: [""], resources: [configmaps], verbs: [get, list]}
- {apiGroups: [""], resources: [resourcequotas, limitranges], verbs: [list]}
{{- end }}

{{- /* What the suite keeps in the cluster: evidence and journal, and the lease of a model. */ -}}
{{- define "roles.state" -}}
- {apiGroups: [""], resources: [configmaps], verbs: [create, update]}
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, create, update, delete]}
{{- end }}

{{- /* The objects of the chart vllm-deployment, and what Helm waits for. */ -}}
{{- define "roles.release" -}}
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [servicemonitors]
  verbs: [get, list, watch, create, update, patch, delete]
- {apiGroups: [apps], resources: [replicasets], verbs: [get, list, watch]}
# A ramp by traffic, and its way back, move the weights of a route.
- {apiGroups: [gateway.networking.k8s.io], resources: [httproutes], verbs: [get, patch]}
- {apiGroups: [""], resources: [pods], verbs: [watch]}
- {apiGroups: [""], resources: [secrets], verbs: [create, update, patch]}
{{- end }}

{{- define "roles.gate" -}}
{{ include "roles.read" . }}
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
