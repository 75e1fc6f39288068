package envoy.authz

import rego.v1

default allow := {"allowed": false, "http_status": 401, "headers": {"www-authenticate": "Bearer"}, "body": "who are you?"}

user := input.attributes.request.http.headers["x-user"]

# Everybody reads, and is told apart behind.
allow := {"allowed": true, "headers": {"x-checked": user}} if {
	user
	input.attributes.request.http.method == "GET"
	input.parsed_path[0] == "orders"
}

# Of what only admins may see, others hear why they may not.
allow := {"allowed": user == "admin", "http_status": 403, "headers": {"x-why": "admins-only"}, "body": "admins only"} if {
	user
	input.parsed_path[0] == "admin"
}
