# The gateway: the page, and OpenAI's Realtime protocol over WebSocket.
ARG BUILD=minmo/build:0.1.0
ARG BASE=minmo/base:0.1.0
FROM ${BUILD} AS packages
ARG PIP_INDEX_URL
RUN install-packages /packages gateway

FROM ${BASE}
COPY --from=packages /packages /opt/minmo/lib/python3.11/site-packages
ENV MINMO_PORT=8080
EXPOSE 8080
ENTRYPOINT ["python", "-m", "services.gateway"]
