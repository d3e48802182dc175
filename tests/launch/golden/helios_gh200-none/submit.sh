#!/bin/bash
# Submits all jobs; each begins when those that it needs have ended well.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
rm -f /runs/minitron/launch/jobs/data/attempts /runs/minitron/launch/jobs/data/failed
data=$(sbatch --requeue --parsable data.sh)
echo "data $data"
rm -f /runs/minitron/launch/jobs/distill/attempts /runs/minitron/launch/jobs/distill/failed
distill=$(sbatch --requeue --parsable --dependency=afterok:$data distill.sh)
echo "distill $distill"
