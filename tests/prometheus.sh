#!/usr/bin/env bash
# A real Prometheus watches a real training run, and its joules are compared with the run's own books to the microjoule.
#
#   tests/prometheus.sh                     builds the release binary
#   WATTLE=path/to/wattle tests/prometheus.sh
#
# Installs the Debian packages it lacks. Nothing here depends on speed: it polls until a condition holds or, after two
# minutes without it, fails.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*"; }

# Everything asked here is on this machine: no proxy.
fetch() { curl -sf --noproxy '*' "$@"; }

work=$(mktemp -d)
touch "$work/train.log" "$work/prometheus.log"
processes=()
clean() {
    for process in "${processes[@]}"; do kill "$process" 2>/dev/null && wait "$process" 2>/dev/null; done
    rm -rf "$work"
}
trap clean EXIT

fail() {
    tail -n 20 "$work"/*.log >&2
    printf 'prometheus.sh: %s\n' "$*" >&2
    exit 1
}

# until_ok WHAT COMMAND...: polls until the command succeeds.
until_ok() {
    local what=$1 tries
    shift
    for ((tries = 0; tries < 600; tries++)); do
        if "$@"; then return; fi
        sleep 0.2
    done
    fail "$what did not come"
}

missing=()
command -v promtool >/dev/null && command -v prometheus >/dev/null || missing+=(prometheus)
command -v curl >/dev/null || missing+=(curl)
command -v jq >/dev/null || missing+=(jq)
if ((${#missing[@]})); then
    say "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if [[ -z ${WATTLE:-} ]]; then
    cargo build --release --quiet -p wattle-engine
    WATTLE=${CARGO_TARGET_DIR:-target}/release/wattle
fi

say "the shipped rules and configuration"
promtool check rules configs/prometheus/*.rules.yml >"$work/promtool.log" 2>&1 || fail "promtool refuses them"
promtool check config configs/prometheus/prometheus.yml >"$work/promtool.log" 2>&1 || fail "promtool refuses them"
promtool test rules configs/prometheus/rules.test.yml >"$work/promtool.log" 2>&1 || fail "promtool refuses them"

say "a training run with metrics at a free port"
for ((i = 0; i < 4000; i++)); do echo "$((i % 97)) sheep and $((i * 7 % 89)) stars"; done >"$work/text.txt"
cat >"$work/config.toml" <<TOML
[run]
name = "watched"
max_tokens = "1B" # until it is told to stop
[device]
threads = 1
[model]
d_model = 32
num_layers = 2
num_heads = 2
[moe]
num_experts = 4
top_k = 2
expert_ffn_size = 32
[data]
train = ["$work/text.txt"]
held_out_by = "tail"
sequence_length = 64
[tokenizer]
kind = "byte"
[optimizer]
batch_sequences = 8
[checkpoint]
every_steps = 100
[eval]
every_steps = 20
max_tokens = 1024
[energy]
meter = "model"
[telemetry]
prometheus_address = "127.0.0.1:0"
TOML
"$WATTLE" train "$work/config.toml" --run-dir "$work/run" --quiet >"$work/train.out" 2>"$work/train.log" &
train=$!
processes+=("$train")

exporter=
find_exporter() {
    exporter=$(sed -n 's|^metrics at http://\(.*\)/metrics$|\1|p' "$work/train.log")
    [[ -n $exporter ]]
}
until_ok "the exporter's address" find_exporter
[[ $(fetch "http://$exporter/healthz") == ok ]] || fail "/healthz is not ok"
has_evaluated() { fetch "http://$exporter/metrics" >"$work/metrics.txt" && grep -q '^wattle_validation_loss ' "$work/metrics.txt"; }
until_ok "a held-out loss" has_evaluated
promtool check metrics <"$work/metrics.txt" >"$work/promtool.log" 2>&1 || fail "promtool refuses the metrics"
[[ ! -s $work/promtool.log ]] || fail "promtool has something to say"
fetch -H 'Accept: application/openmetrics-text; version=1.0.0' "http://$exporter/metrics" | tail -n 1 | grep -qx '# EOF' ||
    fail "OpenMetrics does not end with # EOF"

say "Prometheus with the shipped configuration, once a second"
cp configs/prometheus/*.rules.yml "$work/"
sed -e "s|127.0.0.1:9464|$exporter|" -e 's/_interval: 1[05]s/_interval: 1s/' configs/prometheus/prometheus.yml >"$work/prometheus.yml"
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/data" --web.listen-address=127.0.0.1:0 \
    --enable-feature=exemplar-storage --log.format=json >"$work/prometheus.log" 2>&1 &
processes+=("$!")
server=
find_server() {
    server=$(jq -r 'select(.msg == "Listening on") | .address' "$work/prometheus.log" 2>/dev/null | head -n 1)
    [[ -n $server ]]
}
until_ok "the address of Prometheus" find_server

# query PROMQL [TIME]: the result, a JSON array.
query() {
    fetch "http://$server/api/v1/query" --data-urlencode "query=$1" ${2:+--data-urlencode "time=$2"} |
        jq -ce 'if .status == "success" then .data.result else error(.error) end'
}
# value PROMQL [TIME]: the one number.
value() { query "$@" | jq -re 'if length == 1 then .[0].value[1] else error("one value expected, got \(length)") end'; }
holds() { [[ $(query "$1" 2>/dev/null) == \[?*\] ]]; }

until_ok "ten scrapes" holds 'count_over_time(wattle_tokens_total[1h]) >= 10'
until_ok "the recording rules" holds 'wattle:joules_per_token:rate5m > 0'
rules_are_well() {
    fetch "http://$server/api/v1/rules" |
        jq -e '[.data.groups[].rules[].health] | length > 0 and all(. == "ok")' >/dev/null
}
until_ok "health of every rule" rules_are_well
fetch "http://$server/api/v1/query_exemplars" --data-urlencode 'query=wattle_step_duration_seconds_bucket' \
    --data-urlencode "start=$(($(date +%s) - 3600))" --data-urlencode "end=$(date +%s)" |
    jq -e '[.data[].exemplars[].labels] | length > 0 and all(.run_id == "run" and (.step | tonumber) > 0)' >/dev/null ||
    fail "no exemplar names its run and step"

say "every query of the dashboard"
panels=0
while IFS= read -r expression; do
    expression=${expression//\$job/.*}
    expression=${expression//\$instance/.*}
    expression=${expression//\$__rate_interval/1m}
    [[ $(query "$expression") != "[]" ]] || fail "the dashboard's query finds nothing: $expression"
    panels=$((panels + 1))
done < <(jq -r '.. | .expr? // empty' configs/grafana/dashboards/wattle.json)
((panels >= 30)) || fail "only $panels queries found in the dashboard"

say "the end of the run"
kill -TERM "$train"
code=0
wait "$train" || code=$?
((code == 75)) || fail "the run ended with $code"
until_ok "the end of scraping" holds 'up == 0'

# All numbers of one moment are those of one scrape, and one scrape is of one moment between two steps.
samples=$(query 'wattle_tokens_total[1h]' | jq -c '.[0].values')
first=$(jq -r '.[0][0]' <<<"$samples")
last=$(jq -r '.[-1][0]' <<<"$samples")
between_steps='sum(wattle_phase_energy_joules_total{phase=~"setup|evaluation|checkpoint"} @ %s)'
steps_at() { printf "sum(wattle_energy_joules_total @ %s) - $between_steps" "$1" "$1"; }
tokens=$(value "wattle_tokens_total" "$last")
tokens_at_first=$(value "wattle_tokens_total" "$first")
joules=$(value "$(steps_at "$last")")
per_token=$(value "($(steps_at "$last") - ($(steps_at "$first"))) / ignoring(job, instance)
    (sum(wattle_tokens_total @ $last) - sum(wattle_tokens_total @ $first))")
setup=$(value 'wattle_phase_energy_joules_total{phase="setup"}' "$last")
carbon_ratio=$(value 'sum(wattle_carbon_grams_total) / (sum(wattle_energy_joules_total) / 3.6e6
    * scalar(wattle_grid_intensity_grams_per_kilowatt_hour))' "$last")
parts=$(value 'sum(wattle_energy_joules_total) - sum(wattle_phase_energy_joules_total) - sum(wattle_unattributed_energy_joules_total)' "$last")

say "against metrics.jsonl and the ledger"
"$WATTLE" report "$work/run" --format json >"$work/report.json"
jq -en --slurpfile steps "$work/run/metrics.jsonl" --slurpfile reports "$work/report.json" \
    --argjson tokens "$tokens" --argjson tokens_at_first "$tokens_at_first" --argjson joules "$joules" \
    --argjson per_token "$per_token" --argjson setup "$setup" --argjson carbon_ratio "$carbon_ratio" --argjson parts "$parts" '
    def microjoules: . * 1e6 | round;
    def until($n): [$steps[] | select(.tokens <= $n) | .joules | microjoules] | add;
    def check(what; $got; $expected): if $got == $expected then . else error("\(what): \($got), expected \($expected)") end;
    def near(what; $got; $expected): if (($got - $expected) | fabs) <= 1e-9 * ($expected | fabs) then .
        else error("\(what): \($got), expected \($expected)") end;
    ($reports[0].runs[0]) as $run
    | ($run.windows | map({key: .kind, value: .energy_joules}) | from_entries) as $ledger
    | check("a step with that many tokens"; [$steps[] | select(.tokens == $tokens)] | length; 1)
    | check("microjoules of the steps"; $joules | microjoules; until($tokens))
    | check("microjoules of the set-up in the ledger"; $setup | microjoules; $ledger.setup | microjoules)
    | check("microjoules of all steps in the ledger"; until(1e18); $ledger.step | microjoules)
    | check("tokens in the ledger"; $steps[-1].tokens; $run.tokens)
    | check("microjoules outside phases and unattributed"; $parts | microjoules; 0)
    | near("joules per token"; $per_token; (until($tokens) - until($tokens_at_first)) / 1e6 / ($tokens - $tokens_at_first))
    | near("grams over joules times intensity"; $carbon_ratio; 1)
    | "\($tokens) tokens, \($joules) J in steps, \($per_token) J/token: Prometheus and the ledger agree"' --raw-output
