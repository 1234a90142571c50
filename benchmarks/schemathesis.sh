#!/usr/bin/env bash
# schemathesis over the server's own /openapi.json: no case may be answered with a 5xx. Cases of each of its operations are
# drawn from the schemas; 640 of each are about 10,000 in all.
#
#   benchmarks/schemathesis.sh [CASES]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${VENV:-.venv}
tool=build/schemathesis
if [ ! -x "$tool/bin/schemathesis" ]; then
  "$venv/bin/python" -m venv "$tool"
  "$tool/bin/python" -m pip --disable-pip-version-check install --quiet schemathesis==4.32.5
fi

folder=$(mktemp -d)
trap 'kill "$server" 2> /dev/null; wait; rm -rf "$folder"' EXIT
"$venv/bin/deepwell" serve --port 0 --log none --max-tokens 8 --data-dir "$folder" --database "$folder/ledger.db" > "$folder/said" &
server=$!
until address=$(grep --only-matching --max-count=1 'http://127.0.0.1:[0-9]*' "$folder/said"); do
  kill -0 "$server"
  sleep 0.2
done
"$tool/bin/schemathesis" run "$address/openapi.json" --checks not_a_server_error --phases fuzzing \
  --max-examples "${1:-640}" --request-timeout 60 --continue-on-failure --no-color
