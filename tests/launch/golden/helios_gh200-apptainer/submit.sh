#!/bin/bash
# Submits all jobs; each begins when those that it needs have ended well.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
rm -f /runs/minitron/launch/jobs/import_hf/attempts /runs/minitron/launch/jobs/import_hf/failed
import_hf=$(sbatch --requeue --parsable import_hf.sh)
echo "import_hf $import_hf"
rm -f /runs/minitron/launch/jobs/data/attempts /runs/minitron/launch/jobs/data/failed
data=$(sbatch --requeue --parsable --dependency=afterok:$import_hf data.sh)
echo "data $data"
rm -f /runs/minitron/launch/jobs/score/attempts /runs/minitron/launch/jobs/score/failed
score=$(sbatch --requeue --parsable --dependency=afterok:$import_hf:$data score.sh)
echo "score $score"
rm -f /runs/minitron/launch/jobs/prune/attempts /runs/minitron/launch/jobs/prune/failed
prune=$(sbatch --requeue --parsable --dependency=afterok:$import_hf:$score prune.sh)
echo "prune $prune"
rm -f /runs/minitron/launch/jobs/distill/attempts /runs/minitron/launch/jobs/distill/failed
distill=$(sbatch --requeue --parsable --dependency=afterok:$import_hf:$data:$score:$prune distill.sh)
echo "distill $distill"
rm -f /runs/minitron/launch/jobs/chat/attempts /runs/minitron/launch/jobs/chat/failed
chat=$(sbatch --requeue --parsable --dependency=afterok:$import_hf chat.sh)
echo "chat $chat"
rm -f /runs/minitron/launch/jobs/sft/attempts /runs/minitron/launch/jobs/sft/failed
sft=$(sbatch --requeue --parsable --dependency=afterok:$import_hf:$distill:$chat sft.sh)
echo "sft $sft"
rm -f /runs/minitron/launch/jobs/preferences/attempts /runs/minitron/launch/jobs/preferences/failed
preferences=$(sbatch --requeue --parsable --dependency=afterok:$import_hf preferences.sh)
echo "preferences $preferences"
rm -f /runs/minitron/launch/jobs/reference/attempts /runs/minitron/launch/jobs/reference/failed
reference=$(sbatch --requeue --parsable --dependency=afterok:$import_hf:$sft:$preferences reference.sh)
echo "reference $reference"
rm -f /runs/minitron/launch/jobs/dpo/attempts /runs/minitron/launch/jobs/dpo/failed
dpo=$(sbatch --requeue --parsable --dependency=afterok:$import_hf:$sft:$preferences:$reference dpo.sh)
echo "dpo $dpo"
rm -f /runs/minitron/launch/jobs/tasks/attempts /runs/minitron/launch/jobs/tasks/failed
tasks=$(sbatch --requeue --parsable --dependency=afterok:$import_hf tasks.sh)
echo "tasks $tasks"
rm -f /runs/minitron/launch/jobs/grpo/attempts /runs/minitron/launch/jobs/grpo/failed
grpo=$(sbatch --requeue --parsable --dependency=afterok:$import_hf:$dpo:$tasks grpo.sh)
echo "grpo $grpo"
rm -f /runs/minitron/launch/jobs/export/attempts /runs/minitron/launch/jobs/export/failed
export=$(sbatch --requeue --parsable --dependency=afterok:$import_hf:$grpo:$data export.sh)
echo "export $export"
rm -f /runs/minitron/launch/jobs/evaluate/attempts /runs/minitron/launch/jobs/evaluate/failed
evaluate=$(sbatch --requeue --parsable --dependency=afterok:$import_hf:$data:$prune:$distill:$chat:$sft:$preferences:$reference:$dpo:$tasks:$grpo evaluate.sh)
echo "evaluate $evaluate"
