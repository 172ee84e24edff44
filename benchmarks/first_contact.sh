#!/usr/bin/env bash
# The first call on a machine with a GPU: everything that decides something, most decisive first, within a budget.
#
#     benchmarks/first_contact.sh [SECONDS] [FOLDER] [DATASET]          (defaults: 600, first_contact, none)
#
# FOLDER gets kernels.jsonl (a line a cell, as it is measured) and kernels.md, then step-dit.log, step-sync.log, tests.log and load.log:
# training steps of both families, what only a GPU can show of a run (waits of a step, precision, memory), and the loader. What cannot run says so in its log and stops nothing. Run again, it goes on where it ended.
# Without a CUDA device the kernels run at toy sizes in Triton's interpreter: a rehearsal.
set -u
budget=${1:-600}
folder=${2:-first_contact}
python=${PYTHON:-python}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder"
start=$SECONDS
left() { echo $((budget - (SECONDS - start))); }

# Four fifths for the kernels; the rest needs javisc whole (pip install 'javisc[train]').
"$python" -P -W ignore "$here/kernels.py" --budget $((budget * 4 / 5)) --resume \
    --results "$folder/kernels.jsonl" --out "$folder/kernels.md"
verdict=$?

run() {  # run NAME PARTS COMMAND…: its output into FOLDER/NAME.log, within one of PARTS of what is left
    local name=$1 seconds
    seconds=$(($(left) / $2))
    shift 2
    if [ "$seconds" -lt 5 ]; then
        echo "not started: the budget is spent" > "$folder/$name.log"
        return
    fi
    timeout "$seconds" "$@" > "$folder/$name.log" 2>&1
    echo "ended with $? after $((SECONDS - start)) of $budget s" >> "$folder/$name.log"
}
if "$python" -P -c "import torch, sys; sys.exit(not torch.cuda.is_available())"; then tiny=(); else tiny=(--tiny); fi
run step-dit 3 "$python" -P "$here/train.py" --model dit --repeats 3 "${tiny[@]}"
run step-sync 2 "$python" -P "$here/train.py" --model sync --repeats 3 "${tiny[@]}"
run tests 2 "$python" -P -m pytest -c "$here/../pyproject.toml" --rootdir "$here/.." "$here/../tests/trainer" -m gpu -q -p no:cacheprovider
if [ $# -ge 3 ]; then
    run contact 2 "$python" -P -W ignore "$here/contact.py" "$3" --budget "$(($(left) / 2))" --results "$folder/contact.jsonl"
    run load 1 "$python" -P "$here/load.py" "$3"
fi
echo "results: $folder ($(wc -l < "$folder/kernels.jsonl") cells)"
exit $verdict
