#!/bin/sh
# Starts Triton with the arguments given, and locks the endpoints that change the server: whoever may load a model may
# run code. They ask for ONETRUNK_ADMIN_KEY in the header `onetrunk-admin-key`, as those of `serve-repo` do; without
# such a key they ask for one that nobody knows. Inference, model configs and statistics stay open.
set -eu
key=${ONETRUNK_ADMIN_KEY:-$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')}
lock="model-repository,shared-memory,trace,logging:onetrunk-admin-key=$key"
exec tritonserver "--http-restricted-api=$lock" "--grpc-restricted-protocol=$lock" "$@"
