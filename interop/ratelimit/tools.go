//go:build tools

// Package ratelimit names the version of envoyproxy/ratelimit that interop/run builds.
package ratelimit

import _ "github.com/envoyproxy/ratelimit/src/service_cmd/runner"
