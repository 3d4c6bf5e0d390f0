# The command line: brings the weights before the services start, and talks with them afterwards.
ARG BUILD=minmo/build:0.1.0
ARG TORCH=minmo/torch:0.1.0-cpu
FROM ${BUILD} AS packages
ARG PIP_INDEX_URL
RUN install-packages /packages cli

FROM ${TORCH}
COPY --from=packages /packages /opt/minmo/lib/python3.11/site-packages
# It serves nobody.
HEALTHCHECK NONE
ENTRYPOINT ["minmo"]
CMD ["--help"]
