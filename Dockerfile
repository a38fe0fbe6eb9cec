# ganlab with its recipes and docs, for an NVIDIA GPU or the CPU. docs/how-to/container.md has the
# commands. Layers that change seldom come first: a change of the code installs no packages again.

ARG PYTHON=3.11
ARG BASE=python:${PYTHON}-slim

# A user without rights, uv, and a C++ compiler, which `compile = "networks"` needs.
FROM ${BASE} AS base
ARG DEBIAN_PACKAGES="g++"
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008,DL3013
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ${DEBIAN_PACKAGES} \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m pip install --no-cache-dir uv \
    && useradd --uid 1000 --create-home --shell /bin/bash ganlab \
    && install --directory --mode=0777 /work \
    && chmod 0777 /home/ganlab
ENV UV_PROJECT_ENVIRONMENT=/opt/venv \
    VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:${PATH} \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_SYNC=1 \
    UV_PYTHON_DOWNLOADS=never \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/ganlab

# The versions that were tested together. While it is built, and only then, uv keeps what it fetches
# in a cache of the builder, which is no part of the image. TORCH_BACKEND="" takes torch as uv does
# by itself, which is the CUDA build on Linux; "cpu" takes the build without CUDA, much smaller.
FROM base AS packages
ARG TORCH_BACKEND=""
ARG UV_CACHE_DIR=/var/cache/uv
COPY pyproject.toml constraints/py311.txt ./
RUN --mount=type=cache,target=/var/cache/uv \
    uv venv /opt/venv \
    && uv pip install ${TORCH_BACKEND:+--torch-backend "${TORCH_BACKEND}"} \
        --constraint py311.txt --requirements pyproject.toml

# `docker build --target test`: the source with its tests. It runs the README's second command.
FROM packages AS test
ARG TORCH_BACKEND=""
ARG UV_CACHE_DIR=/var/cache/uv
RUN --mount=type=cache,target=/var/cache/uv \
    uv pip install ${TORCH_BACKEND:+--torch-backend "${TORCH_BACKEND}"} \
        --constraint py311.txt --requirements pyproject.toml --group dev
COPY --chown=1000 . .
RUN --mount=type=cache,target=/var/cache/uv uv pip install --no-deps --editable . \
    && chown 1000 .
USER 1000
ENV HOME=/home/ganlab USER=ganlab
CMD ["uv", "run", "pytest"]

# The default: ganlab as it is installed from a wheel, its recipes and docs beside it. It runs the
# README's first command, in the folder that is mounted at /work.
FROM packages AS ganlab
ARG UV_CACHE_DIR=/var/cache/uv
COPY README.md LICENSE ./
COPY docs docs
COPY recipes recipes
COPY plugins plugins
COPY ganlab ganlab
RUN --mount=type=cache,target=/var/cache/uv uv pip install --no-deps .
USER 1000
# `docker run --user` may name a user that the image does not know
ENV HOME=/home/ganlab USER=ganlab
WORKDIR /work
ENTRYPOINT ["ganlab"]
CMD ["run", "wgan_gp"]
