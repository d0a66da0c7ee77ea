#!/usr/bin/env bash
# The trial of docs/results.md on real images, sized for two cores: ResNet-10t at 48 px, 300 steps.
# Usage: LVMMED_TEST_DATA=<folder of the image packs> benchmarks/real_images_cpu.sh OUT [STEPS]
# What is finished in OUT is not run again.
set -euo pipefail
DATA=${LVMMED_TEST_DATA:?set it to the folder of the image packs}
OUT=${1:?give a folder to write}
STEPS=${2:-300}
BACKBONE=resnet10t
SIZE=48
SMALL="--set model.backbone=$BACKBONE --set views.size=$SIZE --set train.batch_size=128"
SMALL="$SMALL --set train.steps=$STEPS --set train.precision=bf16 --set log.every=20"
export OMP_NUM_THREADS=1  # two runs side by side, one core each

[ -d "$OUT/mixture72" ] || lvmmed prepare "$DATA/pretrain_mixture/index.csv" --out "$OUT/mixture72" --size 72

for recipe in lvm-med simclr paper-literal; do
  extra=""
  [ "$recipe" = simclr ] && extra="--set method.projector_hidden_width=512"
  for seed in 0 1 2; do
    [ -f "$OUT/runs/$recipe-seed$seed/result.json" ] ||
      echo "--recipe $recipe --out $OUT/runs/$recipe-seed$seed --set train.seed=$seed $extra"
  done
done | xargs -r -P 2 -L 1 lvmmed pretrain --data "$OUT/mixture72" $SMALL

done_already() { [ -f "$1/result.json" ]; }
for pack in brain_tumor_mri cxr_pneumonia_224; do
  to="$OUT/runs/probe-$pack-random"
  done_already "$to" || lvmmed probe --weights random --backbone "$BACKBONE" --size "$SIZE" \
    --set 'seeds=[0,1,2]' --data "$DATA/$pack" --out "$to"
  for recipe in lvm-med simclr paper-literal; do
    to="$OUT/runs/probe-$pack-$recipe"
    done_already "$to" || lvmmed probe --data "$DATA/$pack" --out "$to" \
      --weights "$OUT/runs/$recipe-seed0" --weights "$OUT/runs/$recipe-seed1" --weights "$OUT/runs/$recipe-seed2"
  done
  for recipe in random lvm-med simclr; do
    weights="$OUT/runs/$recipe-seed0"
    [ "$recipe" = random ] && weights="random --backbone $BACKBONE --set size_px=$SIZE"
    to="$OUT/runs/finetune-$pack-$recipe"
    done_already "$to" || lvmmed finetune classification --weights $weights --data "$DATA/$pack" \
      --set 'seeds=[0,1,2]' --set epochs=8 --out "$to"
  done
done
lvmmed report "$OUT"/runs/* --out "$OUT/report.html" --title "Real images, ResNet-10t at 48 px"
python "$(dirname "$0")/effective_rank.py" --store "$OUT/mixture72" --size "$SIZE" \
  "$OUT"/runs/{lvm-med,simclr,paper-literal}-seed{0,1,2}
