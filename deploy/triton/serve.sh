#!/bin/sh
# Start Triton with the given arguments, and lock the endpoints that change the server, because anyone who may load a
# model may run code. Like those of `serve-repo`, they require ONETRUNK_ADMIN_KEY in the header `onetrunk-admin-key`. If
# no key is set, they require a random one that nobody knows. Inference, model configs and statistics stay open.
set -eu
key=${ONETRUNK_ADMIN_KEY:-$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')}
lock="model-repository,shared-memory,trace,logging:onetrunk-admin-key=$key"
exec tritonserver "--http-restricted-api=$lock" "--grpc-restricted-protocol=$lock" "$@"
