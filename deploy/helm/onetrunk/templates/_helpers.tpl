{{- define "onetrunk.name" -}}
{{- if contains "onetrunk" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-onetrunk" (.Release.Name | trunc 31 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "onetrunk.selector" -}}
app.kubernetes.io/name: onetrunk
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "onetrunk.labels" -}}
app.kubernetes.io/name: onetrunk
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "onetrunk.image" -}}
image: {{ printf "%s:%s" .image.repository (.image.tag | default .root.Chart.AppVersion) | quote }}
imagePullPolicy: {{ .image.pullPolicy }}
{{- end }}

{{- define "onetrunk.hardened" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- define "onetrunk.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{/*
MiB of /dev/shm, where the tokenizer exchanges requests and answers with Triton. A token takes 88 bytes in all tensors
together, each of the nine is rounded up to 1 MiB, and a text may be as long as the front lets it be. Twice, since a
batch may come while the one before is still held; and 9 MiB for the region itself and its gaps.
*/}}
{{- define "onetrunk.shmMiB" -}}
{{- $tokens := mul 88 .Values.model.maxBatchSize .Values.model.longestBucket }}
{{- $texts := mul 2048 .Values.front.maxTextKb .Values.model.maxBatchSize }}
{{- max 128 (add 9 (mul 2 (add 10 (div (add $tokens $texts) 1048576)))) }}
{{- end }}

{{- define "onetrunk.check" -}}
{{- if ne 1 (len (compact (list .Values.repository.claim .Values.repository.image .Values.repository.store))) }}
{{- fail "give the repository that is to be served: one of repository.claim, repository.image and repository.store" }}
{{- end }}
{{- if and (or .Values.repository.storeSecret .Values.repository.verifyKey) (not .Values.repository.store) }}
{{- fail "repository.storeSecret and repository.verifyKey are for repository.store" }}
{{- end }}
{{- if and .Values.repository.verifyKey (not .Values.repository.storeSecret) }}
{{- fail "repository.verifyKey needs repository.storeSecret, whose release.pub is the key" }}
{{- end }}
{{- if and .Values.tls.clientCa (not .Values.tls.secret) }}
{{- fail "tls.clientCa needs tls.secret, whose ca.crt is the clients' authority" }}
{{- end }}
{{- if and .Values.autoscaling.enabled (not (or .Values.autoscaling.cpu .Values.autoscaling.waiting)) }}
{{- fail "autoscaling needs a measure: autoscaling.cpu or autoscaling.waiting" }}
{{- end }}
{{- if .Values.deployHead.bundle }}
{{- if not (and .Values.repository.claim .Values.deployHead.claim .Values.adminKeySecret) }}
{{- fail "deployHead needs repository.claim, which it writes to, deployHead.claim with the bundle, and adminKeySecret" }}
{{- end }}
{{- if not (or .Values.tls.secret .Values.deployHead.insecure) }}
{{- fail "deployHead would send the admin key in clear: give tls.secret, or deployHead.insecure=true" }}
{{- end }}
{{- if .Values.tls.clientCa }}
{{- fail "deployHead has no certificate of a client: leave tls.clientCa out, or run deploy-head elsewhere" }}
{{- end }}
{{- end }}
{{- end }}
