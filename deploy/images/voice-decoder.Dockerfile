# The voice decoder: text tokens and hidden states in, PCM out.
ARG BUILD=minmo/build:0.1.0
ARG TORCH=minmo/torch:0.1.0-cpu
FROM ${BUILD} AS packages
ARG PIP_INDEX_URL
RUN install-packages /packages voice-decoder

FROM ${TORCH}
COPY --from=packages /packages /opt/minmo/lib/python3.11/site-packages
ENV MINMO_PORT=7103
EXPOSE 7103
ENTRYPOINT ["python", "-m", "services.voice_decoder"]
