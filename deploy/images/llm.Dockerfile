# The LLM's gRPC front. The LLM itself is in the image of Triton.
ARG BUILD=minmo/build:0.1.0
ARG BASE=minmo/base:0.1.0
FROM ${BUILD} AS packages
ARG PIP_INDEX_URL
RUN install-packages /packages llm

FROM ${BASE}
COPY --from=packages /packages /opt/minmo/lib/python3.11/site-packages
ENV MINMO_PORT=7102
EXPOSE 7102
ENTRYPOINT ["python", "-m", "services.llm"]
