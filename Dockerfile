# The agent, one static binary, in an image with nothing else but the licences of what is in it.
#
#   docker build .    podman build .    buildah bud .    cargo xtask image
#
# --build-arg REVISION=$(git rev-parse --short=12 HEAD) puts the commit into siskin_build_info and the image's labels.

# The official compiler image, by digest; its version is the one of rust-toolchain.toml.
FROM docker.io/library/rust:1.95.0-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082 AS build
ARG REVISION=unknown
WORKDIR /siskin
COPY . .
# Crates and objects stay in the builder's caches, so that the next build takes seconds; the image gets what is installed in /image.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/siskin/target \
    SISKIN_REVISION="$REVISION" cargo xtask build && \
    cargo xtask licences && \
    install -D target/release/siskin /image/siskin && \
    cp -r target/licences /image/licences

FROM scratch
ARG REVISION=unknown
LABEL org.opencontainers.image.title="siskin" \
      org.opencontainers.image.description="eBPF host telemetry with a CPU budget that holds and numbers that stay true" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="https://github.com/siskin-agent/siskin" \
      org.opencontainers.image.documentation="https://github.com/siskin-agent/siskin/blob/main/docs/deploy.md" \
      org.opencontainers.image.licenses="Apache-2.0 AND (MIT OR GPL-2.0-only)"
COPY --from=build /image /
EXPOSE 19100
# Capabilities that a container asks for reach root alone; the agent drops them itself. A number, because there is no /etc/passwd.
USER 0:0
ENTRYPOINT ["/siskin"]
CMD ["run"]
