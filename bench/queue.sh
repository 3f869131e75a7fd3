#!/usr/bin/env bash
# The trainings of the models, one after another: bash bench/queue.sh autoencoder|searched|enhancement|prior|gated|vq|digits|
# binarized|subsampled|subsampled_bsq|cascade|quantizers, the functions below.
# The same command resumes where an earlier one stopped, by a signal, by the limit below or by the end of the machine.
#   DATA=data        the folder with train/ and valid/, of both archives of frames, and mnist/
#   PYTHON=python    OMP_NUM_THREADS=1    one core; on a GPU this does not matter
#   LIMIT=64         so many images, for a trial
#   MINUTES=9        stops what trains then, and saves; start again for the next piece. What makes tokens or codebooks is not stopped
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python=${PYTHON:-python} data=${DATA:-data} limit=${LIMIT:+--limit $LIMIT} end=$((SECONDS + 60 * ${MINUTES:-100000}))

train() { # NAME MODEL OPTIONS...: a run of that name, resumed if it was stopped, left alone if it has ended
    local name=$1 model=$2
    shift 2
    if [ -e "checkpoints/$name.state.pth" ]; then
        set -- --resume
    elif [ -e "checkpoints/$name.pth" ]; then
        return
    else
        rm -rf "logs/$name"
        set -- "$@" ${limit} --save_every 3
    fi
    timeout --signal TERM $((end > SECONDS ? end - SECONDS : 1)) "$python" -m homework.train "$model" --name "$name" "$@"
}

step() { # FILE COMMAND...: makes the file, unless it is there
    [ -e "$1" ] || "$python" -m "${@:2}"
}

tokens() { # FOLDER TOKENIZER FRAMES OPTIONS OF THE COPIES...: of FRAMES/train, with copies, and of FRAMES/valid
    step "$1/tokenized_train.pth" homework.tokenize "$2" "$1/tokenized_train.pth" "$3/train" "${@:4}" ${limit}
    step "$1/tokenized_valid.pth" homework.tokenize "$2" "$1/tokenized_valid.pth" "$3/valid" ${limit}
}

search() { # FOLDER N QUALITIES QUALITIES EFFORT: tokens that a search finds, of N frames for training, and of 64 for validation
    step "$1/tokenized_train.pth" homework.tokenize BSQPatchAutoEncoder "$1/tokenized_train.pth" "$data/train" \
        --prior AutoregressiveModel --effort "$5" --quality "$3" --limit "${LIMIT:-$2}"
    step "$1/tokenized_valid.pth" homework.tokenize BSQPatchAutoEncoder "$1/tokenized_valid.pth" "$data/valid" \
        --prior AutoregressiveModel --effort "$5" --quality "$4" --limit "${LIMIT:-64}"
}

autoencoder() { # starts at principal components, and is at its best after minutes
    train queue_autoencoder PatchAutoEncoder --data "$data" --epochs 0.25 --batch_size 8 --lr 2e-3 --ema 0.995 \
        --validate_every 200 --output queue/PatchAutoEncoder.pth
}

searched() { # BSQ's encoder and decoder learn from the tokens that a search finds at nine qualities, in all distinct frames: two
    # hours of a core to search, and an hour and a half to train; the pretrained ones had 11 200 of them
    distinct
    data=queue/distinct search queue/searched 13637 10,20,30,40,50,60,70,80,90 10,20,30,40,50,60,70,80,90 2
    learn() {
        train "$1" "$2" --data queue/searched --dataset tokenized_images --batch_size 8 --ema 0.998 "${@:3}"
    }
    learn queue_encoder homework/BSQPatchAutoEncoder.pth --dial True --epochs 4 --lr 1e-3 --output queue/encoder.pth
    learn queue_decoder queue/encoder.pth --learns decoder --epochs 3 --lr 6e-4 --output queue/decoder.pth
    # a later training is to teach the encoder, if it does not say otherwise
    [ -e queue/BSQPatchAutoEncoder.pth ] || "$python" -c 'import torch; from homework.core import checkpoint
model = checkpoint.load("queue/decoder.pth")
model.config["learns"] = "encoder"
checkpoint.save(model, "queue/BSQPatchAutoEncoder.pth", model.meta, torch.float16)'
}

enhancement() { # the layer for BSQ's second grid, a quarter of an hour of a core beside the search
    search queue/layer 1158 45,50,55,60,65,70 70 3
    step queue/EnhancementLayer.pth homework.enhancement BSQPatchAutoEncoder queue/layer queue/EnhancementLayer.pth
}

digits() { # PixelCNN for 15 epochs and the gated one for 6, an hour each of a core that computes in bfloat16
    train queue_pixelcnn PixelCNN --data "$data" --epochs 15 --batch_size 32 --lr 1e-3 --ema 0.99 --precision bfloat16 \
        --validate_every 3125 --output queue/PixelCNN.pth
    train queue_gated GatedPixelCNN --dataset mnist --data "$data" --c_hidden 32 --n_layers 5 --attention 2 --embedding_dim 4 \
        --epochs 6 --batch_size 16 --lr 3e-3 --precision bfloat16 --validate_every 3125 --output queue/MnistGatedPixelCNN.pth
}

distinct() { # the frames without near-copies, in queue/distinct
    [ -e queue/distinct/train ] || "$python" -m homework.data import "$data" --dir queue/distinct --distinct 2
}

grids() { # BSQ's, of the distinct frames
    distinct
    tokens queue/distinct BSQPatchAutoEncoder queue/distinct --copies 3
}

prior() { # the transformer over BSQ's grids of distinct frames, 2 hours of a core that computes in bfloat16
    grids
    train queue_prior AutoregressiveModel --data queue/distinct --epochs 6 --batch_size 8 --lr 2e-3 --dropout 0.05 \
        --precision bfloat16 --output queue/AutoregressiveModel.pth
}

gated() { # the gated PixelCNN over the same grids, half an hour of a core
    grids
    train queue_gated_bsq GatedPixelCNN --data queue/distinct --c_hidden 48 --n_layers 5 --epochs 3 --batch_size 4 --lr 2e-3 \
        --precision bfloat16 --output queue/GatedPixelCNN.pth
}

binarized() { # digits whose ink is drawn again each time, with attention to the rows above; 2 hours of a core
    train queue_binarized GatedPixelCNN --dataset mnist --data "$data" --binarize sample --c_hidden 48 --n_layers 6 \
        --attention 2 --embedding_dim 4 --epochs 8 --batch_size 16 --lr 3e-3 --precision bfloat16 --validate_every 3125 \
        --output queue/BinarizedGatedPixelCNN.pth
}

scene() { # a codebook for entire maps of the pretrained cascade's auto-encoder
    local split
    distinct
    [ -e queue/ae10.pth ] || "$python" -c 'from homework.core import checkpoint
checkpoint.save(checkpoint.load("CascadeScene").autoencoder, "queue/ae10.pth")'
    for split in train valid; do
        "$python" -m homework.features queue/ae10.pth queue/distinct/$split queue/features10/$split ${limit}
    done
    step queue/scene.pth homework.som fit queue/features10 queue/scene.pth --n_codes 64 --patch map --passes 12 --radius_end 0.4
}

small=(--batch_size 64 --model_lr 3e-3 --in_dim 48 --hidden_dim 192 --num_enc_layers 0 --num_dec_layers 2 --neighbours 2
    --dropout 0.1 --epochs 6 --precision bfloat16) # a stage from a scene to 5x5 tokens

subsampled() { # a code for the scene, grids of 5x5 and 10x15 codes, one a part of the other, their stages, and a plain prior
    scene
    step queue/sub/fine.pth homework.som fit queue/features10 queue/sub/fine.pth --n_codes 1024 --passes 12 --radius_end 0.4
    step queue/sub/middle.pth homework.som subsample queue/sub/fine.pth queue/sub/middle.pth --patch 2x3
    tokens queue/sub/fine queue/sub/fine.pth queue/distinct --copies 3 --shift 9
    tokens queue/sub/middle queue/sub/middle.pth queue/distinct --copies 3 --shift 9
    tokens queue/sub/scene queue/scene.pth queue/distinct --copies 3 --shift 9
    train queue_sub0 CascadeStage --data queue/sub/middle --coarse queue/sub/scene --tokenizer queue/sub/middle.pth "${small[@]}" \
        --output queue/sub/stage0.pth
    train queue_sub1 CascadeStage --data queue/sub/fine --coarse queue/sub/middle --tokenizer queue/sub/fine.pth --epochs 3 \
        --batch_size 16 --model_lr 2e-3 --in_dim 112 --hidden_dim 448 --num_enc_layers 2 --num_dec_layers 3 --neighbours 4 \
        --dropout 0.05 --precision bfloat16 --output queue/sub/stage1.pth
    train queue_sub_plain AutoregressiveModel --data queue/sub/fine --tokenizer queue/sub/fine.pth --epochs 3 --batch_size 16 \
        --lr 2e-3 --d_latent 112 --n_layers 3 --dropout 0.05 --precision bfloat16 --output queue/sub/plain.pth
}

subsampled_bsq() { # the same with BSQ's grids: the scene, parts of 5x5 and 10x15 tokens, and all 20x30; 3 hours of a core
    local parts=queue/parts again=(--model_lr 1.5e-3 --precision bfloat16) # each stage is trained a second time
    scene
    grids
    step $parts/middle.pth homework.som subsample BSQPatchAutoEncoder $parts/middle.pth --patch 2
    step $parts/coarse.pth homework.som subsample $parts/middle.pth $parts/coarse.pth --patch 2x3
    tokens $parts/middle $parts/middle.pth queue/distinct --copies 3 --shift 4
    tokens $parts/coarse $parts/coarse.pth queue/distinct --copies 3 --shift 4
    tokens $parts/scene queue/scene.pth queue/distinct --copies 3 --shift 4
    train queue_parts0 CascadeStage --data $parts/coarse --coarse $parts/scene --tokenizer $parts/coarse.pth "${small[@]}" \
        --output $parts/stage0.pth
    train queue_parts0b checkpoints/queue_parts0.pth --data $parts/coarse --coarse $parts/scene "${again[@]}" --epochs 6 \
        --batch_size 64 --dropout 0.1 --output $parts/stage0.pth
    train queue_parts1 CascadeStage --data $parts/middle --coarse $parts/coarse --tokenizer $parts/middle.pth --epochs 3 \
        --batch_size 16 --model_lr 2e-3 --in_dim 56 --hidden_dim 224 --num_enc_layers 1 --num_dec_layers 2 --neighbours 2 \
        --dropout 0.05 --precision bfloat16 --output $parts/stage1.pth
    train queue_parts1b checkpoints/queue_parts1.pth --data $parts/middle --coarse $parts/coarse "${again[@]}" --epochs 4 \
        --batch_size 16 --dropout 0.05 --output $parts/stage1.pth
    train queue_parts2 CascadeStage --data queue/distinct --coarse $parts/middle --tokenizer BSQPatchAutoEncoder --epochs 2 \
        --batch_size 8 --model_lr 2e-3 --in_dim 96 --hidden_dim 384 --num_enc_layers 1 --num_dec_layers 2 --neighbours 8 \
        --use_sliding_window --sliding_window 100 --dropout 0.05 --precision bfloat16 --output $parts/stage2.pth
    train queue_parts2b checkpoints/queue_parts2.pth --data queue/distinct --coarse $parts/middle "${again[@]}" --epochs 3 \
        --batch_size 8 --dropout 0.05 --output $parts/stage2.pth
}

vq() { # VQ from the pretrained one's weights on, with a rate in its loss, on distinct frames; and priors over its grids; 3 hours of a core
    distinct
    train queue_vq1 VQPatchAutoEncoder --init VQPatchAutoEncoder --data queue/distinct --rate_weight 1e-4 --restart_below 0.1 \
        --epochs 7 --batch_size 4 --lr 1e-3 --precision bfloat16 --ema 0.998 --output queue/VQPatchAutoEncoder.pth
    tokens queue/vq queue/VQPatchAutoEncoder.pth queue/distinct --copies 3 --codes
    train queue_vq2 AutoregressiveModel --data queue/vq --tokenizer queue/VQPatchAutoEncoder.pth --inputs codes --epochs 2 \
        --batch_size 4 --lr 2e-3 --dropout 0.05 --precision bfloat16 --output queue/VQAutoregressiveModel.pth
    train queue_vq3 GatedPixelCNN --data queue/vq --tokenizer queue/VQPatchAutoEncoder.pth --inputs codes --epochs 2 \
        --batch_size 4 --lr 2e-3 --c_hidden 48 --n_layers 5 --precision bfloat16 --output queue/VQGatedPixelCNN.pth
}

quantizers() { # VQ from nothing, for an epoch: what options of the quantizer change is measured against this
    train queue_vq VQPatchAutoEncoder --data "$data" --epochs 1 --batch_size 3 --lr 1.2e-3 --output queue/vq.pth
}

cascade() { # residual codebooks of 1x1, 2x3, 5x5 and 10x15 codes, their stages, and a plain prior; two and a half hours of a core
    local coarser=() name codes patch
    train queue_ae PatchAutoEncoder --data "$data" --epochs 5 --pca 1 --patch_size 10 --bottleneck 12 --latent_dim 64 \
        --detail 8 --encoder_blocks 1 --decoder_blocks 2 --batch_size 8 --lr 2e-3 --output queue/ae.pth
    for split in train valid; do # resumes by itself
        "$python" -m homework.features checkpoints/queue_ae.pth "$data/$split" queue/features/$split ${limit}
    done
    for codebook in "map 64 map" "coarse 256 5" "middle 512 2x3" "fine 1024 1" "alone 1024 1"; do
        read -r name codes patch <<< "$codebook"
        if [ "$name" = alone ]; then coarser=(); fi # for the plain prior
        step queue/$name.pth homework.som fit queue/features queue/$name.pth --n_codes "$codes" --patch "$patch" --passes 12 \
            --radius_end 0.4 "${coarser[@]}"
        coarser=(--coarser queue/$name.pth)
        tokens queue/$name queue/$name.pth "$data" --copies 1 --shift 9
    done
    train queue_stage0 CascadeStage --data queue/coarse --coarse queue/map --tokenizer queue/coarse.pth --epochs 6 \
        --batch_size 64 --model_lr 2e-3 --in_dim 48 --hidden_dim 192 --num_enc_layers 1 --num_dec_layers 2 --neighbours 2 \
        --dropout 0.1 --output queue/stage0.pth
    train queue_stage1 CascadeStage --data queue/middle --coarse queue/map,queue/coarse --tokenizer queue/middle.pth --epochs 4 \
        --batch_size 32 --model_lr 2e-3 --in_dim 64 --hidden_dim 256 --num_enc_layers 1 --num_dec_layers 2 --neighbours 4 \
        --output queue/stage1.pth
    train queue_stage2 CascadeStage --data queue/fine --coarse queue/map,queue/coarse,queue/middle --tokenizer queue/fine.pth \
        --epochs 3 --batch_size 16 --model_lr 2e-3 --in_dim 96 --hidden_dim 384 --num_enc_layers 2 --num_dec_layers 2 \
        --neighbours 4 --output queue/stage2.pth
    train queue_plain AutoregressiveModel --data queue/alone --tokenizer queue/alone.pth --epochs 3 --batch_size 16 --lr 2e-3 \
        --d_latent 112 --n_layers 3 --output queue/plain.pth
}

[ $# -gt 0 ] || { sed -n '2,8s/^# //p' "$0" && exit 1; }
mkdir -p queue
for part in "$@"; do "$part"; done
