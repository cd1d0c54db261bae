#!/usr/bin/env bash
# A task of Nextflow failed: print what it said last, and keep why for the index over all datasets.
#   failed.sh TASK_FOLDER PROCESS TAG EXIT_CODE ATTEMPT FOLDER_OF_FAILURES
set -eu
task=$1 process=$2 tag=$3 code=$4 attempt=$5 dataset=${3%% *} verb=${2##*:}
verb=${verb,,}
kept=$6/$dataset/failures written=$task/$dataset/failures
if [ "$tag" = 'all datasets' ]; then kept=$6/@all/failures written=$task/results/failures; fi
echo "$process ($tag) failed:"
tail -n 10 "$task/.command.err" | tee "$task/.command.said"
mkdir -p "$kept"
# What the step wrote down; where it could not, since it was killed, what it said last.
if ! cp "$written"/*.json "$kept/" 2>/dev/null; then
    last=$(tail -n 1 "$task/.command.said" | tr -d '\000-\037' | sed 's/["\\]/\\&/g')
    message="ended with exit code $code at attempt $attempt. $last"
    name=$verb${tag#"$dataset"}; name=${name% datasets}
    printf '{"verb": "%s", "command": ["%s"], "message": "%s", "code": %s, "run": ""}\n' \
        "$verb" "$verb" "$message" "$code" >"$kept/${name// /-}.json"
fi
