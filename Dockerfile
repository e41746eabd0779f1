# AxisMapper for CPUs and, with `--gpus all`, for NVIDIA GPUs, from one image.
#
#   docker build -t axismapper .
#   docker build -t axismapper:cpu --build-arg CUDA=no .     without NVIDIA's libraries, far smaller
#   docker build -t axismapper:dev --build-arg PROFILE=dev .    built in a fraction of the time, and slower
#   docker run --rm -v axismapper-work:/work -v axismapper-cache:/cache axismapper demo
#
# /work is the working folder (stage files in configs/, results in out/); /cache holds the Hub's cache, fetched releases
# and the search index. Labels: --build-arg VERSION=... --build-arg REVISION="$(git rev-parse HEAD)". BuildKit is needed.

ARG RUST_IMAGE=rust:1.91-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3 python3-pip \
    && rm -rf /var/lib/apt/lists/*
# The binary looks for libtorch where it was linked; both stages use this folder.
WORKDIR /opt/axismapper
COPY Cargo.toml Cargo.lock rustfmt.toml ./
COPY scripts/setup.sh scripts/
ARG CUDA=yes
RUN --mount=type=cache,target=/root/.cache/pip \
    case "$CUDA" in yes) scripts/setup.sh --cuda ;; *) scripts/setup.sh --cpu ;; esac
COPY . .
ARG PROFILE=release
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/opt/axismapper/target \
    cargo build --profile "$PROFILE" --locked \
    && install -D "target/$(if [ "$PROFILE" = dev ]; then echo debug; else echo "$PROFILE"; fi)/axismapper" \
        /stage/usr/local/bin/axismapper \
    && strip /stage/usr/local/bin/axismapper
# Of libtorch only the libraries go along; with no GPU only those that the binary loads.
RUN set -eu; \
    root=/stage/opt/axismapper; \
    libraries() { \
        if [ "$CUDA" = yes ]; then find .libtorch -name '*.so*' ! -name '*python*'; \
        else ldd /stage/usr/local/bin/axismapper | awk '{ print $3 }' | grep '^/opt/axismapper/' | sed 's|^/opt/axismapper/||'; fi; \
    }; \
    libraries | sort -u | while read -r file; do \
        real=$(realpath --relative-to=. "$file"); \
        install -D -m 644 "$real" "$root/$real"; \
        if [ "$real" != "$file" ]; then mkdir -p "$root/$(dirname "$file")"; cp -P "$file" "$root/$file"; fi; \
    done; \
    mkdir -p /stage/work && cp -r configs /stage/work/

FROM ${RUNTIME_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="AxisMapper" \
      org.opencontainers.image.description="Plain words to billable ICD-10-CM codes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home --shell /usr/sbin/nologin axismapper \
    && mkdir -p /work /cache \
    && chown axismapper: /work /cache
COPY --from=build /stage/usr /usr
COPY --from=build /stage/opt /opt
COPY --from=build --chown=1000:1000 /stage/work /work
ENV HF_HOME=/cache/huggingface \
    AXISMAPPER_CACHE=/cache/axismapper \
    OMP_WAIT_POLICY=passive \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER axismapper
WORKDIR /work
VOLUME ["/work", "/cache"]
# The program is process 1: SIGTERM reaches it, and training stops at a checkpoint.
ENTRYPOINT ["axismapper"]
CMD ["--help"]
