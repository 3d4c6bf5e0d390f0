# What all services share. `make images` builds these three stages before the services:
# `build` has a compiler and installs packages; `base` is Python, the packages that every service
# needs, MinMo itself, and a user without rights; `torch` is `base` with PyTorch, for those that compute.
ARG PYTHON=3.11.15
# For a build that is the same each time: the digests of the two images, as in @sha256:...
ARG PYTHON_DIGEST=""
ARG PYTHON_SLIM_DIGEST=""

FROM python:${PYTHON}-bookworm${PYTHON_DIGEST} AS build
# Where pip finds packages; by default its own index.
ARG PIP_INDEX_URL
COPY deploy/images/install-packages /usr/local/bin/
COPY deploy/images/requirements/ /requirements/
RUN install-packages /build-packages build \
    && python -m venv --without-pip /opt/minmo \
    && install-packages /opt/minmo/lib/python3.11/site-packages base
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE NOTICE ./
COPY tools/generate_protos.py tools/
COPY protos protos
COPY services services
COPY minmo minmo
RUN PYTHONPATH=/build-packages pip --python /opt/minmo/bin/python install --no-cache-dir --no-deps \
        --no-build-isolation .

FROM python:${PYTHON}-slim-bookworm${PYTHON_SLIM_DIGEST} AS base
RUN groupadd --gid 10001 minmo \
    && useradd --uid 10001 --gid minmo --no-create-home --home-dir /tmp \
        --shell /usr/sbin/nologin minmo \
    && install --directory --owner minmo --group minmo /var/lib/minmo
COPY --from=build /opt/minmo /opt/minmo
COPY deploy/images/healthcheck.py /opt/minmo/
# Who reaches a container is for the engine to say.
ENV PATH=/opt/minmo/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MINMO_HOME=/var/lib/minmo \
    MINMO_HOST=0.0.0.0 \
    MINMO_METRICS_PORT=9464
# All else may be read-only.
VOLUME ["/tmp", "/var/lib/minmo"]
USER 10001:10001
WORKDIR /tmp
EXPOSE 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-I", "-S", "/opt/minmo/healthcheck.py", "http://127.0.0.1:$MINMO_METRICS_PORT/readyz"]

FROM build AS torch-packages
ARG PIP_INDEX_URL
# The address of PyTorch's index of builds for a CPU. Without it you get the build with CUDA.
ARG TORCH_INDEX=""
RUN install-packages /packages torch torch-cuda

FROM base AS torch
COPY --from=torch-packages /packages /opt/minmo/lib/python3.11/site-packages
