#!/bin/sh
# Regenerates shared/containerd/gen from shared/containerd/proto. Only needed after a change there: the result is committed.
# Needs protoc and Google's own .proto files (Debian: protobuf-compiler libprotobuf-dev).
set -eu
cd "$(dirname "$0")/.."
command -v protoc >/dev/null 2>&1 || {
  echo "generate: protoc is missing; install it: apt-get install protobuf-compiler libprotobuf-dev" >&2
  exit 1
}
proto=shared/containerd/proto
gen=shared/containerd/gen
rm -rf "$gen"
mkdir -p "$gen"
# Enums as literals: Node runs the result as it is, so nothing may need more than types erased.
# shellcheck disable=SC2046 # one word per file is meant
protoc --plugin=protoc-gen-ts_proto=node_modules/.bin/protoc-gen-ts_proto -I "$proto" \
  --ts_proto_out="$gen" \
  --ts_proto_opt=env=node,outputServices=grpc-js,esModuleInterop=true,importSuffix=.ts,enumsAsLiterals=true,forceLong=number,useDate=false,outputJsonMethods=false,useExactTypes=false,exportCommonSymbols=false,removeEnumPrefix=true,outputIndex=false \
  $(cd "$proto" && find . -name '*.proto' | sed 's|^\./||' | sort)
echo "generate: $(find "$gen" -name '*.ts' | wc -l) files in $gen"
