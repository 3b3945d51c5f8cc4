# syntax=docker/dockerfile:1
# The server with Litestream around it: an empty /data is restored from the copy, then Litestream starts the server,
# passes a stop signal on, waits until the server has drained, and copies the rest before it ends itself.
#
#   docker build --file deploy/Dockerfile --tag tandem .
#   docker build --file deploy/litestream.Dockerfile --tag tandem-litestream .
#   docker run --volume tandem:/data --env LITESTREAM_URL=s3://bucket/tandem ... tandem-litestream
# docker-compose.yml gives `tandem` as a build context instead, so that the one image is built before the other.
ARG TANDEM=tandem

FROM litestream/litestream:0.5.17 AS litestream

# hadolint ignore=DL3006
FROM ${TANDEM} AS server

FROM server
# For a copy in a folder: a volume that is mounted here belongs to the server's user, as /data does. Nothing here has a
# shell that could make a folder, so it is the empty /data once more.
COPY --from=server --chown=65532:65532 /data /copies
COPY --from=litestream /usr/local/bin/litestream /usr/local/bin/litestream
COPY deploy/litestream.yml /etc/litestream.yml
ENV TANDEM_DATABASE=/data/tandem.db \
    LITESTREAM_SOCKET=/data/litestream.sock \
    DURABILITY=replicated
ENTRYPOINT ["/usr/local/bin/litestream", "replicate", "-restore-if-db-not-exists", "-exec", "/usr/local/bin/tandem"]
