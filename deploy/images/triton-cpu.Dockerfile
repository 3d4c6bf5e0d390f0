# Triton for hosts without a GPU: the server that `minmo serve` starts, out of its package, a
# hundredth of the size of NVIDIA's image. What goes in and out is the same.
ARG BUILD=minmo/build:0.1.0
ARG TORCH=minmo/torch:0.1.0-cpu
FROM ${BUILD} AS packages
ARG PIP_INDEX_URL
RUN install-packages /packages triton-cpu \
    && install-packages /tools torch
# MinMo's own download of it: checks the hash, and that a system like this has what it needs.
RUN PYTHONPATH=/packages:/tools:/opt/minmo/lib/python3.11/site-packages MINMO_HOME=/server \
        python -P -c "from minmo.weights import ensure; ensure('mini', only=('triton',))" \
    && mkdir /server/opt \
    && mv /server/triton /server/opt/ \
    && ln -s /opt/triton/pytriton/tritonserver /server/opt/tritonserver

FROM ${TORCH}
COPY --from=packages /packages /opt/minmo/lib/python3.11/site-packages
# /opt/tritonserver, as in NVIDIA's image.
COPY --from=packages /server/opt /opt
COPY deploy/triton /opt/minmo/deploy/triton
# A thread that waits spins for a moment: for long it would take the core from others, and not at
# all costs a fifth of the speed.
ENV PATH=/opt/tritonserver/bin:$PATH \
    GOMP_SPINCOUNT=20000
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 \
    CMD ["python", "-I", "-S", "/opt/minmo/healthcheck.py", "http://127.0.0.1:8000/v2/health/ready"]
ENTRYPOINT ["tritonserver", "--model-repository=/opt/minmo/deploy/triton"]
CMD ["--exit-timeout-secs=10", "--log-info=false"]
