#!/usr/bin/env bash
# Generates the Python stubs beside the .proto files; `make check` compares them with what is committed.
# grpcio-tools is pinned: newer ones generate for protobuf 7, which flwr excludes.
set -euo pipefail
cd "$(dirname "$0")"
out="${1:-.}"
python -m grpc_tools.protoc -I. --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" sprachbund/v1/*.proto
