{{/* The name of all resources: the release's name, with latentd in it. */}}
{{- define "latentd.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains "latentd" .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-latentd" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* What every selector asks for. A Deployment's selector cannot change, so these must not. */}}
{{- define "latentd.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{/*
Metadata of a resource: (dict "root" $). Where it is not as usual, with "suffix" (of the name) or "name",
"namespace", and more "labels" and "annotations".
*/}}
{{- define "latentd.metadata" -}}
{{- $ := .root -}}
name: {{ .name | default (print (include "latentd.fullname" $) (.suffix | default "")) }}
namespace: {{ .namespace | default $.Release.Namespace }}
labels:
  helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" }}
  app.kubernetes.io/name: {{ $.Chart.Name }}
  app.kubernetes.io/instance: {{ $.Release.Name }}
  app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ $.Release.Service }}
  {{- with merge (dict) (.labels | default dict) $.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) $.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "latentd.serviceAccountName" -}}
{{- $made := ternary (include "latentd.fullname" .) "default" .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default $made -}}
{{- end }}

{{- define "latentd.tlsSecretName" -}}
{{- .Values.tls.secretName | default (print (include "latentd.fullname" .) "-tls") -}}
{{- end }}

{{- define "latentd.preset" -}}
{{- index .Values.presets .Values.accelerator | toYaml -}}
{{- end }}

{{- define "latentd.image" -}}
{{- $preset := include "latentd.preset" . | fromYaml -}}
{{- $tag := .Values.image.tag | default (print .Chart.AppVersion $preset.imageSuffix) -}}
{{- .Values.image.repository }}{{ ternary (print "@" .Values.image.digest) (print ":" $tag) (ne .Values.image.digest "") -}}
{{- end }}

{{/* The server's environment. A later one goes before an earlier one, and those of the chart before all. */}}
{{- define "latentd.settings" -}}
{{- $preset := include "latentd.preset" . | fromYaml -}}
{{- $own := dict "LATENTD_HOST" "0.0.0.0" "LATENTD_PORT" 50051 "LATENTD_METRICS_PORT" 9464 "LATENTD_BUNDLES" "/models" -}}
{{- if .Values.http.enabled -}}
{{- $_ := set $own "LATENTD_HTTP_PORT" 8080 -}}
{{- end -}}
{{- if .Values.tls.enabled -}}
{{- $_ := set $own "LATENTD_TLS_CERT" "/tls/tls.crt" -}}
{{- $_ := set $own "LATENTD_TLS_KEY" "/tls/tls.key" -}}
{{- if .Values.tls.clientCertificates -}}
{{- $_ := set $own "LATENTD_TLS_CLIENT_CA" "/tls/ca.crt" -}}
{{- end -}}
{{- end -}}
{{- if .Values.tokens.enabled -}}
{{- $_ := set $own "LATENTD_TOKENS" "/tokens/tokens.txt" -}}
{{- end -}}
{{- $all := dict -}}
{{- range list $preset.settings .Values.settings $own -}}
{{- range $name, $value := . -}}
{{- /* Numbers of YAML are float64: printed as they are, 1000000 would be 1e+06. */ -}}
{{- $whole := and (kindIs "float64" $value) (eq $value (floor $value)) -}}
{{- $_ := set $all $name (toString (ternary (int64 $value) $value $whole)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $all -}}
{{- end }}
