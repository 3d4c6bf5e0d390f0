# Triton as NVIDIA ships it, with the LLM's model repository: for GPUs. Its Python is 3.12, so it
# has packages of its own.
ARG BASE=minmo/base:0.1.0
ARG TRITON=26.06-py3
# For a build that is the same each time: the digest of the image, as in @sha256:...
ARG TRITON_DIGEST=""

FROM ${BASE} AS minmo

FROM nvcr.io/nvidia/tritonserver:${TRITON}${TRITON_DIGEST} AS packages
ARG PIP_INDEX_URL
# See base.Dockerfile.
ARG TORCH_INDEX=""
COPY deploy/images/install-packages /usr/local/bin/
COPY deploy/images/requirements/ /requirements/
# An environment of its own: the first Python in PATH is the one that runs the model.
RUN python3 -m venv --without-pip /opt/minmo \
    && install-packages /opt/minmo/lib/python3.12/site-packages torch torch-cuda triton
COPY --from=minmo /opt/minmo/lib/python3.11/site-packages/minmo /opt/minmo/lib/python3.12/site-packages/minmo
RUN /opt/minmo/bin/python -m compileall -q -f /opt/minmo/lib/python3.12/site-packages/minmo

FROM nvcr.io/nvidia/tritonserver:${TRITON}${TRITON_DIGEST}
RUN groupadd --gid 10001 minmo \
    && useradd --uid 10001 --gid minmo --no-create-home --home-dir /tmp \
        --shell /usr/sbin/nologin minmo \
    && install --directory --owner minmo --group minmo /var/lib/minmo
COPY --from=packages /opt/minmo /opt/minmo
COPY deploy/images/healthcheck.py /opt/minmo/
COPY deploy/triton /opt/minmo/deploy/triton
# A thread that waits spins for a moment: for long it would take the core from others, and not at
# all costs a fifth of the speed.
ENV PATH=/opt/minmo/bin:/opt/tritonserver/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GOMP_SPINCOUNT=20000 \
    MINMO_HOME=/var/lib/minmo
VOLUME ["/tmp", "/var/lib/minmo"]
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 \
    CMD ["python", "-I", "-S", "/opt/minmo/healthcheck.py", "http://127.0.0.1:8000/v2/health/ready"]
ENTRYPOINT ["tritonserver", "--model-repository=/opt/minmo/deploy/triton"]
CMD ["--exit-timeout-secs=10", "--log-info=false"]
