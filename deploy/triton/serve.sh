#!/bin/sh
# Start Triton with the given arguments, which make it listen on Unix sockets in the folder ONETRUNK_SOCKETS.
set -eu
umask 077
# A Triton that was killed leaves its sockets behind, and where one of them lies, HTTP's cannot be bound.
rm -f "$ONETRUNK_SOCKETS"/*.sock*
exec tritonserver "$@"
