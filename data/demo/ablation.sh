#!/usr/bin/env bash
# What each part of the method brings: one supervised model a seed, and everything else from it. Resumable: what is done is skipped.
#   data/demo/ablation.sh [DATA EMB OUT [CAPTIONS]]      default: the demo world; a MIntRec folder with rationales.jsonl works too
#   SEEDS="0 1" RANKS=1 PYTHON=.venv/bin/python data/demo/ablation.sh      RANKS: 1, 2, 4 or 8; if not given, 2, or 1 on one GPU or core
#   ONLY="supervised,loo" data/demo/ablation.sh          these rows of the table alone, and what they start from
#   CLIPS=0 data/demo/ablation.sh                        self-critical runs over all of train, not over 200 clips of it
set -euo pipefail
DATA=${1:-data/demo/clips} EMB=${2:-runs/demo/emb} OUT=${3:-runs/demo/ablation} CAPTIONS=${4:-data/demo/clips/captions.json}
SEEDS=${SEEDS:-0 1} CLIPS=${CLIPS:-200} PYTHON=${PYTHON:-.venv/bin/python} ONLY=${ONLY:-} ROWS=8
RANKS=${RANKS:-$("$PYTHON" -c 'from imagebind_llm.distributed import ranks_here; print(ranks_here())')}
((ROWS % RANKS == 0)) || { echo "$0: RANKS=$RANKS does not divide the $ROWS rows of a step; take 1, 2, 4 or 8" >&2; exit 2; }
BATCH=(--emb_path "$EMB" --trainable all --batch_size $((ROWS / RANKS)) --warmup_epochs 0.2)
PRETRAIN=(--stage pretrain --adapter_layer 12 --adapter_len 1 --lora_rank 8 --bridge_width 2 --epochs 2 --lr 3e-3 --gate_lr 20)
SUPERVISED=(--epochs 3 --lr 1e-3 --gate_lr 20)
AFTER=(--epochs 3 --limit "$CLIPS" --lr 3e-4) # three passes, since lambda rises during the first
CRITIC=("${AFTER[@]}" --w_critic 2)

wanted() { # NAME: is this row asked for, or one that starts from it?
    case $1 in
        pretrain) return 0 ;;
        supervised) [[ -z "$ONLY" || ",$ONLY," =~ ,(supervised|supervised longer|greedy|loo|group|without consistency|summed rewards), ]] ;;
        "rationale first supervised") [[ -z "$ONLY" || ",$ONLY," == *",rationale first"* ]] ;;
        *) [[ -z "$ONLY" || ",$ONLY," == *",$1,"* ]] ;;
    esac
}

train() { # OUTPUT_DIR flags: one run, unless it is done or not asked for, and the answers of its best checkpoint
    local folder=$1 name=${1##*/}
    shift
    wanted "$name" || return 0
    if [ -e "$folder/done" ]; then
        [ ! -s "$folder/done" ] || [ "$(cat "$folder/done")" = "$*" ] && return
        echo "$0: $folder was made with other flags ($(cat "$folder/done")), now $*; give another OUT" >&2
        exit 2
    fi
    echo "== $folder"
    "$PYTHON" -m torch.distributed.run --nproc_per_node "$RANKS" engine_finetune.py --output_dir "$folder" "${BATCH[@]}" "$@"
    [ "$name" = pretrain ] ||
        "$PYTHON" explain.py --checkpoint "$folder/best" --data_path "$DATA" --emb_path "$EMB" --batch "$folder/answers.jsonl"
    echo "$*" >"$folder/done"
}

count=$(wc -w <<<"$SEEDS")
echo "$count seeds x (first stage, 5 supervised, 6 self-critical runs, 11 x explaining test): estimated $((count * 190)) minutes with"
echo "the demo world on 2 cores, less with ONLY; started again it continues"
for seed in $SEEDS; do
    S=$OUT/seed$seed
    start=(--data_path "$DATA" --seed "$seed" --pretrained_path "$S/pretrain/best" "${SUPERVISED[@]}")
    from=(--data_path "$DATA" --seed "$seed" --pretrained_path "$S/supervised/best")
    critic=("${from[@]}" "${CRITIC[@]}")
    train "$S/pretrain" "${PRETRAIN[@]}" --data_path "$CAPTIONS" --seed "$seed"
    train "$S/supervised" "${start[@]}"
    train "$S/supervised longer" "${from[@]}" "${AFTER[@]}"
    train "$S/intent only" "${start[@]}" --w_rationale 0
    train "$S/rationale only" "${start[@]}" --w_intent 0
    train "$S/greedy" "${critic[@]}" --baseline greedy
    train "$S/loo" "${critic[@]}"
    train "$S/group" "${critic[@]}" --baseline group
    train "$S/without consistency" "${critic[@]}" --reward_weights intent=1,rationale=.5,format=.1
    train "$S/summed rewards" "${critic[@]}" --reward_norm none
    train "$S/rationale first supervised" "${start[@]}" --answer_order rationale
    train "$S/rationale first" --data_path "$DATA" --seed "$seed" --pretrained_path "$S/rationale first supervised/best" "${CRITIC[@]}" --answer_order rationale
done
"$PYTHON" data/demo/ablation_table.py --data_path "$DATA" --output_dir "$OUT"
