#!/usr/bin/env bash
# The trial of docs/results.md on real images, sized for two cores: ResNet-18 at 64 px.
# Usage: LVMMED_TEST_DATA=<folder of the image packs> benchmarks/real_images_cpu.sh OUT [STEPS]
set -euo pipefail
DATA=${LVMMED_TEST_DATA:?set it to the folder of the image packs}
OUT=${1:?give a folder to write}
STEPS=${2:-150}
SMALL="--set model.backbone=resnet18 --set views.size=64 --set train.batch_size=128 --set train.steps=$STEPS"
export OMP_NUM_THREADS=1  # two runs side by side, one core each

[ -d "$OUT/mixture72" ] || lvmmed prepare "$DATA/pretrain_mixture/index.csv" --out "$OUT/mixture72" --size 72

for recipe in lvm-med simclr paper-literal; do
  for seed in 0 1 2; do
    [ -f "$OUT/runs/$recipe-seed$seed/result.json" ] ||
      echo "--recipe $recipe --out $OUT/runs/$recipe-seed$seed --set train.seed=$seed"
  done
done | xargs -r -P 2 -L 1 lvmmed pretrain --data "$OUT/mixture72" $SMALL

for pack in brain_tumor_mri cxr_pneumonia_224; do
  lvmmed probe --weights random --backbone resnet18 --size 64 --set 'seeds=[0,1,2]' \
    --data "$DATA/$pack" --out "$OUT/runs/probe-$pack-random"
  for recipe in lvm-med simclr paper-literal; do
    lvmmed probe --data "$DATA/$pack" --out "$OUT/runs/probe-$pack-$recipe" \
      --weights "$OUT/runs/$recipe-seed0" --weights "$OUT/runs/$recipe-seed1" --weights "$OUT/runs/$recipe-seed2"
  done
  for recipe in random lvm-med simclr; do
    weights="$OUT/runs/$recipe-seed0"
    [ "$recipe" = random ] && weights="random --backbone resnet18 --set size_px=64"
    lvmmed finetune classification --weights $weights --data "$DATA/$pack" \
      --set 'seeds=[0,1,2]' --set epochs=8 --out "$OUT/runs/finetune-$pack-$recipe"
  done
done
lvmmed report "$OUT"/runs/* --out "$OUT/report.html" --title "Real images, ResNet-18 at 64 px"
