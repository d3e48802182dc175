#!/bin/bash
# Installs this package's wheel and what it needs, at the versions of constraints.txt beside it, into an image that has
# PyTorch. What was built for the image's CUDA (PyTorch, Transformer Engine and their like) stays as it is.
# Run by Containerfile and apptainer.def: install.sh x86_64|aarch64
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [[ $(uname -m) != "$1" ]]; then
    echo "ARCHITECTURE: found $1, allowed: $(uname -m), which the base image is for" >&2
    exit 1
fi
version=$(python3 -c 'import platform; print(platform.python_version())')
if [[ $version != 3.1[12].* ]]; then
    echo "BASE: found an image with Python $version, allowed: 3.11, 3.12" >&2
    exit 1
fi

# Packages of an image that were built for its CUDA.
built='^(torch|torchvision|triton|pytorch-triton|apex|transformer[-_]engine[^=]*|flash[-_]attn|cuda-[^=]*|nvidia-(cu|nccl)[^=]*)=='
constraints=$(mktemp)
if ! python3 -m pip list --format=freeze | grep -iE "$built" >"$constraints" || ! grep -q '^torch==' "$constraints"; then
    echo "BASE: found an image without PyTorch, allowed: NVIDIA's of PyTorch or of the NeMo Framework" >&2
    exit 1
fi
grep -viE "$built" "$here/constraints.txt" >>"$constraints"
unset PIP_CONSTRAINT # NVIDIA's images hold back packages that are to be replaced here
python3 -m pip install --no-cache-dir --constraint "$constraints" "$here"/*.whl
rm "$constraints"
