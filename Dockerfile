# mesh-control and nothing else: no shell, no package manager, a user that is not root. The root file system can be read-only.
FROM rust:1-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc g++ libc6-dev make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --locked --profile dist --bin mesh-control

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/dist/mesh-control /usr/local/bin/mesh-control
USER 65532:65532
EXPOSE 15012 15014 15017
ENTRYPOINT ["/usr/local/bin/mesh-control"]
