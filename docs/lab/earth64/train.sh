#!/bin/sh
# Repeats the training of the bundled Earth (docs/lab/earth64.md): some minutes of a GPU, in stages.
#   [WAVES=104 PACKETS=9 EVEN=16 FINE=21 FLAT=14 BENT=12 GATED=13 COARSE=12 DEEP=8.5 BROAD=18 STEEP=22 GAMMA=22] sh docs/lab/earth64/train.sh FOLDER [further options of train.py]
# The stages' lengths are in thousands of images.
set -e
folder=$1
batch=16
bandwidth=0.3
shift
mkdir -p "$folder"
test -e "$folder/earth.zip" || python dataset_tool.py earth --dest "$folder/earth.zip" --resolution 64 --octaves 6 \
  --counts 8000,9000,10000,11000,11000,11000

stage() {  # NAME and options
  name=$1
  shift
  python train.py --data "$folder/earth.zip" --config small --outdir "$folder/$name" --batch "$batch" \
    --set generator.channel_max=96 --set generator.channel_base=4096 --set generator.fourier_features=1024 \
    --set generator.n_bins=7 --set generator.bin_offset=1 --set generator.num_half_res=0 \
    --set generator.feature_gates=false --set generator.mixing_init=1 \
    --set discriminator.channel_base=2048 --set discriminator.channel_max=256 --set discriminator.num_half_res=0 \
    --set training.r1_gamma=0.3 --set training.r2_gamma=0.3 --set training.metrics=null "$@"
}

after() {  # STAGE, NAME and options: goes on from the networks of another
  python -m multiscale.cli.pack "$folder/$1" "$folder/$1.safetensors" --networks "$folder/$1.pt"
  before=$1
  shift
  stage "$@" --transfer "$folder/$before.pt" --set generator.feature_bandwidth="$bandwidth" --set training.ema_kimg=2 \
    --set training.ema_rampup=0.3 --set training.ada_kimg=150 --set schedule.warmup_kimg=0 --set schedule.skew_kimg=0
}

stage waves --kimg ${WAVES:-104} --set generator.feature_bandwidth=0 --set generator.even_features=false --set training.tf32=true --set training.g_lr=0.004 --set training.d_lr=0.0035 \
  --set training.lr_end=0.1 --set training.ema_kimg=5 --set training.ada_kimg=300 --set training.consistency_weight=6 "$@"
after waves packets --kimg ${PACKETS:-9} --set training.g_lr=0.002 --set training.d_lr=0.00175 --set training.lr_end=0.05 \
  --set generator.even_features=false --set training.consistency_weight=8 "$@"
after packets even --kimg ${EVEN:-16} --set generator.even_features=true --set training.g_lr=0.0024 --set training.d_lr=0.0021 \
  --set training.lr_end=0.03 --set training.consistency_weight=10 "$@"
after even fine --kimg ${FINE:-21} --set generator.even_features=true --set training.g_lr=0.0022 --set training.d_lr=0.002 \
  --set training.lr_end=0.03 --set training.consistency_weight=10 "$@"
after fine flat --kimg ${FLAT:-14} --set generator.even_features=true --set training.g_lr=0.0022 --set training.d_lr=0.002 \
  --set training.lr_end=1 --set training.consistency_weight=12 "$@"
after flat bent --kimg ${BENT:-12} --set generator.even_features=true --set training.g_lr=0.0022 --set training.d_lr=0.002 \
  --set training.lr_end=0.03 --set training.consistency_weight=30 "$@"
after bent gated --kimg ${GATED:-13} --set generator.even_features=true --set generator.feature_gates=true --set training.g_lr=0.0022 \
  --set training.d_lr=0.002 --set training.lr_end=0.03 --set training.consistency_weight=20 --set schedule.boost_last=0.4 "$@"
batch=8
after gated coarse --kimg ${COARSE:-12} --set generator.even_features=true --set generator.feature_gates=true --set training.g_lr=0.0017 \
  --set training.d_lr=0.0015 --set training.lr_end=1 --set training.consistency_weight=24 \
  --set 'training.consistency_by_octave=[1.5,1.5,1.25,1,1,1]' --set schedule.boost_last=0.4 "$@"
after coarse deep --kimg ${DEEP:-8.5} --set generator.even_features=true --set generator.feature_gates=true --set training.g_lr=0.0017 \
  --set training.d_lr=0.0015 --set training.lr_end=0.03 --set training.consistency_weight=24 \
  --set 'training.consistency_by_octave=[1.5,1.5,1.25,1,1,1]' --set schedule.boost_first=1 --set schedule.boost_last=2.5 "$@"
bandwidth=0.6
after deep broad --kimg ${BROAD:-18} --set generator.even_features=true --set generator.feature_gates=true --set generator.feature_envelope=0.5 \
  --set training.g_lr=0.0017 --set training.d_lr=0.0015 --set training.lr_end=0.02 --set training.consistency_weight=24 \
  --set 'training.consistency_by_octave=[1.75,1.75,1.4,1,1,1]' --set schedule.boost_first=1 --set schedule.boost_last=1.25 "$@"
after broad steep --kimg ${STEEP:-22} --set generator.even_features=true --set generator.feature_gates=true --set generator.feature_envelope=0.4 \
  --set generator.envelope_octaves=3 --set generator.critical_filter_size=10 --set training.g_lr=0.0017 --set training.d_lr=0.0015 --set training.lr_end=0.02 \
  --set training.consistency_weight=24 --set 'training.consistency_by_octave=[1.75,1.75,1.4,1,1,1]' --set schedule.boost_first=1 --set schedule.boost_last=0.7 "$@"
after steep gamma --kimg ${GAMMA:-22} --set generator.even_features=true --set generator.feature_gates=true --set generator.feature_envelope=0.4 \
  --set generator.envelope_octaves=3 --set generator.critical_filter_size=10 --set training.r1_gamma=0.1 --set training.r2_gamma=0.1 \
  --set training.g_lr=0.0018 --set training.d_lr=0.00155 --set training.lr_end=0.02 --set training.consistency_weight=24 \
  --set 'training.consistency_by_octave=[1,1.2,1.2,1,1,1]' --set schedule.boost_first=1 --set schedule.boost_last=0.3 "$@"
python -m multiscale.cli.pack "$folder/gamma" "$folder/earth64.safetensors" --networks "$folder/networks.pt" \
  --info kimg=271.5 --info title=Earth --info licence=Apache-2.0
