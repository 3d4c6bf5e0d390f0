# The orchestrator: the conversation, and the public gRPC API.
ARG BUILD=minmo/build:0.1.0
ARG BASE=minmo/base:0.1.0
FROM ${BUILD} AS packages
ARG PIP_INDEX_URL
RUN install-packages /packages orchestrator

FROM ${BASE}
COPY --from=packages /packages /opt/minmo/lib/python3.11/site-packages
ENV MINMO_PORT=7100
EXPOSE 7100
ENTRYPOINT ["python", "-m", "services.orchestrator"]
