{{- define "mesh-control.name" -}}
mesh-control{{ with .Values.revision }}-{{ . }}{{ end }}
{{- end -}}
