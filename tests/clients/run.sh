#!/usr/bin/env bash
# Real clients, each in an environment of its own below build/clients, against two servers. Environments are made anew
# when their lists of requirements change. VENV is the environment that Deepwell is installed in.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

venv=${VENV:-.venv}
out=build/clients
mkdir -p "$out"

for list in tests/clients/*.txt; do
  name=$(basename "$list" .txt)
  if ! cmp --quiet "$list" "$out/$name/.made"; then
    start=$SECONDS
    rm -rf "${out:?}/$name"
    "$venv/bin/python" -m venv "$out/$name"
    "$out/$name/bin/python" -m pip --disable-pip-version-check install --quiet --requirement "$list"
    cp "$list" "$out/$name/.made"
    echo "== clients, $name installed: $((SECONDS - start)) s"
  fi
done

folder=$(mktemp -d)
servers=()
trap 'kill "${servers[@]}" 2> /dev/null; wait; rm -rf "$folder"' EXIT
"$venv/bin/deepwell" serve --port 0 --log none --data-dir "$folder" --database "$folder/ledger.db" > "$folder/embedded" &
servers+=($!)
PYTHONPATH=tests:tests/server "$venv/bin/python" tests/clients/scripted.py > "$folder/scripted" &
servers+=($!)

# address FILE: what a server has said of where it is, once it is there.
address() {
  for _ in $(seq 600); do
    if found=$(grep --only-matching --max-count=1 'http://127.0.0.1:[0-9]*' "$1"); then echo "$found"; return; fi
    sleep 0.1
  done
  echo "a server did not start: $(cat "$1")" >&2
  exit 1
}
DEEPWELL_EMBEDDED=$(address "$folder/embedded")
DEEPWELL_SCRIPTED=$(address "$folder/scripted")
export DEEPWELL_EMBEDDED DEEPWELL_SCRIPTED

# tests ENVIRONMENT FILE...: run files of tests with what is installed in an environment.
tests() {
  local name=$1; shift
  (cd tests/clients && PYTHONPATH='' "../../$out/$name/bin/python" -m pytest -q -p no:cacheprovider --rootdir . --confcutdir . -c /dev/null "$@")
}
failed=0
tests openai2 test_openai.py || failed=1
tests openai3 test_openai.py test_responses.py test_editors.py || failed=1
tests frameworks test_anthropic.py test_langchain.py test_llama_index.py || failed=1
exit $failed
