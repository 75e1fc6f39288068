# Every recipe is a plain cargo line: nothing works only through `just`.

# What there is to run.
default:
    @just --list

# What has to hold before a change lands: the same script the server runs.
ci:
    bash .ci/run

# What takes too long for every change.
nightly *STEPS:
    bash .ci/nightly {{STEPS}}

# Every test, documentation included.
test *ARGS:
    cargo test --workspace {{ARGS}}

# Formatting and lints.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --all-features -- -D warnings

# Formats the code.
fmt:
    cargo fmt --all

# The documentation of the workspace, opened in a browser.
doc:
    cargo doc --workspace --no-deps --all-features --open

# Licences, sources and bans of what is linked.
deny:
    cargo deny check bans licenses sources

# The example: services, control plane and traffic in one process.
bookinfo *ARGS:
    cargo run --bin bookinfo -- {{ARGS}}

# gRPC's own xDS clients, in Python, Node.js, Go and Java, and Envoy against mesh-control.
interop *ARGS:
    bash interop/run {{ARGS}}

# Allocations and instructions of one request, with and without the mesh.
bench:
    cargo run --release --bin counts
