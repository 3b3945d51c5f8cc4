# syntax=docker/dockerfile:1
# The server with Litestream around it: an empty /data is restored from the copy, then Litestream starts the server,
# passes a stop signal on, waits until the server has drained, and copies the rest before it ends itself.
#
#   docker build --file deploy/Dockerfile --tag tandem .
#   docker build --file deploy/litestream.Dockerfile --tag tandem-litestream .
#   docker run --volume tandem:/data --env LITESTREAM_URL=s3://bucket/tandem ... tandem-litestream
ARG TANDEM=tandem:latest

FROM litestream/litestream:0.5.17 AS litestream

# hadolint ignore=DL3006
FROM ${TANDEM}
COPY --from=litestream /usr/local/bin/litestream /usr/local/bin/litestream
COPY deploy/litestream.yml /etc/litestream.yml
ENV TANDEM_DATABASE=/data/tandem.db \
    LITESTREAM_SOCKET=/data/litestream.sock \
    DURABILITY=replicated
ENTRYPOINT ["/usr/local/bin/litestream", "replicate", "-restore-if-db-not-exists", "-exec", "/usr/local/bin/tandem"]
