#!/usr/bin/env bash
# What each part of the method brings, by what the references are worth: one first stage a seed, and everything else from it.
# Resumable: what is done is skipped; the cheapest rows come first; the table is written after every seed, missing cells missing.
#   data/demo/ablation.sh [DATA EMB OUT [CAPTIONS]]      default: the demo world; a MIntRec folder with rationales.jsonl works too
#   REFERENCES=blind data/demo/ablation.sh               on DATA/rationales-blind.jsonl (also 10%: rationales-10.jsonl); if not given,
#                                                        faithful: DATA/rationales.jsonl. python -m imagebind_llm.demo_world writes them
#   SEEDS="0 1" RANKS=1 PYTHON=.venv/bin/python data/demo/ablation.sh      RANKS: 1, 2, 4 or 8; if not given, 2, or 1 on one GPU or core
#   ONLY="supervised,claims" data/demo/ablation.sh       these rows of the table alone, and what they start from
#   CLIPS=0 data/demo/ablation.sh                        self-critical runs over all of train, not over 200 clips of it
set -euo pipefail
DATA=${1:-data/demo/clips} EMB=${2:-runs/demo/emb} OUT=${3:-runs/demo/ablation} CAPTIONS=${4:-data/demo/clips/captions.json}
SEEDS=${SEEDS:-0 1} CLIPS=${CLIPS:-200} PYTHON=${PYTHON:-.venv/bin/python} ONLY=${ONLY:-} ROWS=8 REFERENCES=${REFERENCES:-faithful}
[ -x "$PYTHON" ] || command -v "$PYTHON" >/dev/null || { echo "$0: PYTHON=$PYTHON: no such program; make setup" >&2; exit 2; }
RANKS=${RANKS:-$("$PYTHON" -c 'from imagebind_llm.distributed import ranks_here; print(ranks_here())')}
DTYPE=${DTYPE:-$("$PYTHON" -c 'from imagebind_llm.distributed import cpu_multiplies_bfloat16 as b; print("bfloat16" if b() else "auto")')}
((ROWS % RANKS == 0)) || { echo "$0: RANKS=$RANKS does not divide the $ROWS rows of a step; take 1, 2, 4 or 8" >&2; exit 2; }
RATIONALES=$DATA/rationales.jsonl TABLE=$OUT
if [ "$REFERENCES" != faithful ]; then RATIONALES=$DATA/rationales-${REFERENCES%\%}.jsonl TABLE=$OUT/${REFERENCES%\%}; fi
BATCH=(--emb_path "$EMB" --trainable all --batch_size $((ROWS / RANKS)) --warmup_epochs 0.2 --dtype "$DTYPE")
PRETRAIN=(--stage pretrain --adapter_layer 12 --adapter_len 1 --lora_rank 8 --bridge_width 2 --epochs 6 --lr 3e-3 --gate_lr 20
    --batch_size $((2 * ROWS / RANKS)))
SUPERVISED=(--epochs 3 --lr 1e-3 --gate_lr 20)
AFTER=(--epochs 3 --limit "$CLIPS" --lr 3e-4) # three passes, since lambda rises during the first
CRITIC=("${AFTER[@]}" --w_critic 2)
JUDGED=("${AFTER[@]}" --w_critic 8 --w_rationale 0.2 --captions "$CAPTIONS" --reward_weights truth=1)

needs() { # ROW: the rows that it starts from or whose judge picks, one a line
    case $1 in
        "supervised best of "*) printf '%s\n' supervised claims ;;
        *" best of "*) echo "${1% best of *}" ;;
        pretrain | supervised | "supervised with captions" | "intent only" | "rationale only" | "rationale first supervised") ;;
        "claims with captions") echo "supervised with captions" ;;
        "rationale first") echo "rationale first supervised" ;;
        *) echo supervised ;;
    esac
}

asked() { # ROWS, one a line: they and all that they need
    local row
    while read -r row; do
        echo "$row"
        asked <<<"$(needs "$row")"
    done < <(grep . || true)
}

ASKED=$(tr , '\n' <<<"pretrain,$ONLY" | asked)

wanted() { # ROW: is it asked for, or one that is needed?
    [ -z "$ONLY" ] || grep -qxF "$1" <<<"$ASKED"
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
    mkdir -p "$folder"
    ( # a shell of its own, which knows the processor time of its commands
        trap 'times >>"$folder/training_times"' EXIT
        "$PYTHON" -m torch.distributed.run --nproc_per_node "$RANKS" engine_finetune.py --output_dir "$folder" "${BATCH[@]}" "$@"
    )
    [ "$name" = pretrain ] || explain "$folder/best" "$folder"
    echo "$*" >"$folder/done"
}

explain() { # CHECKPOINT FOLDER flags: answers to the test split
    (
        trap 'times >>"$2/answering_times"' EXIT
        "$PYTHON" explain.py --checkpoint "$1" --data_path "$DATA" --emb_path "$EMB" --batch "$2/answers.jsonl" --dtype "$DTYPE" \
            "${@:3}"
    )
}

best_of() { # K ROW JUDGE: of K sampled answers and the greedy one of a row's model that which the judge of JUDGE believes most
    local folder="$S/$2 best of $1"
    wanted "$2 best of $1" && [ ! -e "$folder/done" ] || return 0
    echo "== $folder"
    mkdir -p "$folder"
    explain "$S/$2/best" "$folder" --judge "$S/$3/best" --best_of "$1" --temperature 0.6
    touch "$folder/done"
}

for seed in $SEEDS; do
    S=$TABLE/seed$seed FIRST=$OUT/seed$seed/pretrain
    data=(--data_path "$DATA" --rationales "$RATIONALES" --seed "$seed")
    start=("${data[@]}" --pretrained_path "$FIRST/best" "${SUPERVISED[@]}")
    from=("${data[@]}" --pretrained_path "$S/supervised/best")
    seeing=("${data[@]}" --pretrained_path "$S/supervised with captions/best" --w_caption 1)
    critic=("${from[@]}" "${CRITIC[@]}")
    train "$FIRST" "${PRETRAIN[@]}" --data_path "$CAPTIONS" --seed "$seed"
    train "$S/supervised" "${start[@]}"
    train "$S/supervised with captions" "${start[@]}" --captions "$CAPTIONS" --w_caption 1
    train "$S/supervised longer" "${from[@]}" "${AFTER[@]}"
    train "$S/captions mixed in" "${from[@]}" "${AFTER[@]}" --captions "$CAPTIONS" --w_caption 1
    train "$S/contrast" "${from[@]}" "${AFTER[@]}" --w_contrast 0.5
    train "$S/believed references" "${from[@]}" "${AFTER[@]}" --captions "$CAPTIONS" --trust_references no
    train "$S/claims with captions" "${seeing[@]}" "${JUDGED[@]}" --credit claim
    train "$S/claims" "${from[@]}" "${JUDGED[@]}" --credit claim
    train "$S/whole answer" "${from[@]}" "${JUDGED[@]}" --credit answer
    train "$S/claims to go" "${from[@]}" "${JUDGED[@]}" --credit to_go
    train "$S/best of samples" "${from[@]}" "${JUDGED[@]}" --credit best
    train "$S/corrected" "${from[@]}" "${JUDGED[@]}" --credit corrected
    train "$S/local" "${from[@]}" "${JUDGED[@]}" --credit local
    for k in 4 8; do
        best_of $k supervised claims
        best_of $k claims claims
        best_of $k "claims with captions" "claims with captions"
    done
    train "$S/loo" "${critic[@]}"
    if [ "$REFERENCES" = faithful ]; then # the parts of the method as they were before claims were judged
        train "$S/intent only" "${start[@]}" --w_rationale 0
        train "$S/rationale only" "${start[@]}" --w_intent 0
        train "$S/greedy" "${critic[@]}" --baseline greedy
        train "$S/group" "${critic[@]}" --baseline group
        train "$S/without consistency" "${critic[@]}" --reward_weights intent=1,rationale=.5,format=.1
        train "$S/rationale first supervised" "${start[@]}" --answer_order rationale
        train "$S/rationale first" "${data[@]}" --pretrained_path "$S/rationale first supervised/best" "${CRITIC[@]}" --answer_order rationale
    fi
    "$PYTHON" data/demo/ablation_table.py --data_path "$DATA" --output_dir "$TABLE"
done
