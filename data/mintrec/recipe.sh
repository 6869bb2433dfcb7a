#!/usr/bin/env bash
# MIntRec from the downloaded folder to results and explanations. Resumable: what is done is skipped, what was interrupted continues.
#   data/mintrec/recipe.sh DATA [LLAMA]      DATA: the folder of train.tsv; LLAMA: as --llama_model_path, SmolLM2 if not given
#   RANKS=8 SEED=1 OUT=runs/mintrec EPOCHS=8 data/mintrec/recipe.sh MIntRec LLAMA      on eight GPUs, another seed
#   NODES=2 NODE_RANK=0 MASTER=host0:29500 RANKS=8 data/mintrec/recipe.sh MIntRec LLAMA      on every node, with its own NODE_RANK;
#                                                                              DATA and OUT on a disk that all nodes see
# CAPTIONS: a JSON of {key, caption} for the first stage, DATA/captions.json if not given; without one the stage is left out.
# The self-critical stage needs reference rationales, DATA/rationales.jsonl (write_rationales.py); without them it is left out.
# Its judge is fitted on CAPTIONS or, where there are none, on the rationales; the console says how far to trust it.
# TRAIN_ARGS: more flags for every training command.
set -euo pipefail
DATA=${1:?usage: $0 DATA [LLAMA]} LLAMA=${2:-}
OUT=${OUT:-runs/mintrec} SEED=${SEED:-0} EPOCHS=${EPOCHS:-8} PYTHON=${PYTHON:-.venv/bin/python}
ENCODER=${ENCODER:-imagebind_huge} CAPTIONS=${CAPTIONS:-$DATA/captions.json} PROBE_SEEDS=${PROBE_SEEDS:-0 1 2 3 4 5 6 7 8 9}
LAYERS=${LAYERS:-12} LORA=${LORA:-8} ROWS=${ROWS:-32} NODES=${NODES:-1} NODE_RANK=${NODE_RANK:-0} MASTER=${MASTER:-}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # threads that wait by spinning starve the other ranks of a small machine

RANKS=${RANKS:-$("$PYTHON" -c 'from imagebind_llm.distributed import ranks_here; print(ranks_here())')} # 2, or 1 on one GPU or core
EMB=$OUT/emb S=$OUT/seed$SEED SHORT=$((EPOCHS < 2 ? EPOCHS : 2))
EACH=$((ROWS / (RANKS * NODES))) # the same rows a step on any number of processes
((EACH > 0)) || { echo "$0: $((RANKS * NODES)) processes for ROWS=$ROWS rows a step; lower RANKS or raise ROWS" >&2; exit 2; }
BATCH=$((EACH < 8 ? EACH : 8))
LAUNCH=("$PYTHON")
((RANKS * NODES == 1)) || LAUNCH+=(-m torch.distributed.run --nproc_per_node "$RANKS")
if ((NODES > 1)); then
    LAUNCH+=(--nnodes "$NODES" --node_rank "$NODE_RANK" --rdzv_backend static --rdzv_endpoint "${MASTER:?on several nodes MASTER=HOST:PORT of node 0 is needed}")
fi
MODEL=(--trainable all --adapter_layer "$LAYERS" --adapter_len 1 --lora_rank "$LORA" --gate_lr 20 --seed "$SEED" --batch_size "$BATCH" --accum_iter $((EACH / BATCH)))
[ -z "$LLAMA" ] || MODEL+=(--llama_model_path "$LLAMA")
read -ra MORE <<<"${TRAIN_ARGS:-}"
MODEL+=(--emb_path "$EMB" ${MORE[@]+"${MORE[@]}"})

main() { ((NODE_RANK == 0)); } # what one process does, node 0 does
say() { ! main || printf '\n== %s\n' "$*"; }
train() { # OUTPUT_DIR the file that its end leaves, flags
    local folder=$1 result=$1/$2
    shift 2
    if [ -e "$result" ]; then say "$folder is done ($result)"; else
        say "training $folder"
        "${LAUNCH[@]}" engine_finetune.py --output_dir "$folder" "${MODEL[@]}" "$@"
        ! main || touch "$result"
    fi
}

if main; then
    say "1. is the data set complete? (exit code 1: with losses, which later steps list again)"
    "$PYTHON" -m imagebind_llm.check "$DATA" || { code=$? && ((code == 1)) || exit "$code"; }
fi
say "2. clips to embeddings: $EMB"
"${LAUNCH[@]}" avt_get_emb.py --data_path "$DATA" --output_dir "$EMB" --encoder "$ENCODER"
if main && [ ! -e "$OUT/probe/report.html" ]; then
    say "3. what the embeddings hold: $OUT/probe/report.html"
    # shellcheck disable=SC2086
    "$PYTHON" classifier.py --data_path "$DATA" --emb_path "$EMB" --output_dir "$OUT/probe" --ablate --seeds $PROBE_SEEDS
fi
START=() SIGHT=()
if [ -e "$CAPTIONS" ]; then
    say "4. first stage: the model learns to see and hear from captions, $CAPTIONS"
    train "$S/pretrain" done --stage pretrain --data_path "$CAPTIONS" --epochs "$SHORT" --warmup_epochs 0.2 --lr 2e-3
    START=(--pretrained_path "$S/pretrain/best") SIGHT=(--captions "$CAPTIONS" --w_caption 1) # mixed in, so that sight is kept
else
    say "4. first stage: left out, there is no $CAPTIONS"
fi
say "5. supervised: intent, and rationale where there is one"
train "$S/itsl" results.json --data_path "$DATA" ${START[@]+"${START[@]}"} ${SIGHT[@]+"${SIGHT[@]}"} --epochs "$EPOCHS" --warmup_epochs 0.5 --lr 1e-3
BEST=$S/itsl
if [ -e "$DATA/rationales.jsonl" ]; then
    say "6. self-critical: each claim of the model's own sampled answers is paid for what a judge sees and hears in the clip"
    JUDGED=(--credit claim --w_critic 8 --w_rationale 0.2 --reward_weights truth=1) # without captions its judge is fitted on rationales
    train "$S/critic" results.json --data_path "$DATA" --pretrained_path "$S/itsl/best" --epochs "$SHORT" --warmup_epochs 0.1 --lr 3e-4 --gate_lr 1 \
        "${JUDGED[@]}" ${SIGHT[@]+"${SIGHT[@]}"}
    BEST=$S/critic
else
    say "6. self-critical: left out, there is no $DATA/rationales.jsonl (write_rationales.py makes it)"
fi
main || exit 0
say "7. test, explained: $S/answers.jsonl"
"$PYTHON" explain.py --checkpoint "$BEST/best" --data_path "$DATA" --emb_path "$EMB" --batch "$S/answers.jsonl"
say "8. test, with intervals, beside the probe: $S/report/report.html"
[ -e "$S/report/report.html" ] || "$PYTHON" classifier.py --data_path "$DATA" --emb_path "$EMB" --output_dir "$S/report" --method itsl \
    --checkpoint "$BEST/best" --compare "$OUT/probe"
say "done: $BEST/results.json, $S/answers.jsonl, $S/report/report.html, $OUT/probe/report.html"
