# The encoder: PCM in; voice activity, words and speech embeddings out.
ARG BUILD=minmo/build:0.1.0
ARG TORCH=minmo/torch:0.1.0-cpu
FROM ${BUILD} AS packages
ARG PIP_INDEX_URL
RUN install-packages /packages encoder

FROM ${TORCH}
COPY --from=packages /packages /opt/minmo/lib/python3.11/site-packages
ENV MINMO_PORT=7101
EXPOSE 7101
ENTRYPOINT ["python", "-m", "services.encoder"]
