#!/bin/sh
# Make src/tinkex/wire/tinkex_public_pb2.py(i) from the .proto beside it.
# The generator is old on purpose: its code checks no runtime version, so it runs with every
# protobuf from 4.25 to 7.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'grpcio-tools==1.62.3' 'setuptools<81'
"$work/venv/bin/python" -m grpc_tools.protoc \
  --proto_path=src --python_out=src --pyi_out=src src/tinkex/wire/tinkex_public.proto
