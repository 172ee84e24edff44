#!/usr/bin/env bash
# The first call on a machine with a GPU: everything that decides something, most decisive first, within a budget.
#
#     benchmarks/first_contact.sh [SECONDS] [FOLDER] [DATASET] [OPTIONS of kernels.py]
#
# Defaults: 600, first_contact, and clips of its own (DATASET "" too).
#
# FOLDER gets two files: cells.jsonl (a line a cell, as it is measured) and report.md (written anew every few seconds). What cannot
# run says so there and stops nothing. Give some seconds less than the machine gives. Killed at any moment, FOLDER holds what was
# measured until then, and the clips that were made (cells.clips); run again, it goes on there. PYTHON names another interpreter.
# Without a CUDA device the same call runs at toy sizes in Triton's interpreter: a rehearsal.
set -eu
folder=${2:-first_contact}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder"
exec "${PYTHON:-python}" -P -W ignore "$here/kernels.py" --budget "${1:-600}" --resume ${3:+--dataset "$3"} \
    --results "$folder/cells.jsonl" --out "$folder/report.md" "${@:4}"
