# mmseg_twins on PyTorch's CUDA image:
#   docker build -t mmseg_twins .
#   docker run --rm -it --gpus all --shm-size 8g -v "$PWD:/workspace" mmseg_twins bash
ARG BASE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime

FROM ${BASE} AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM ${BASE}
# What OpenCV needs; distributions keep one version of it at a time.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /dist /dist
COPY requirements/tested.txt /dist/
# Keeps the image's PyTorch. The variable is for images whose Python is Ubuntu's.
RUN PIP_BREAK_SYSTEM_PACKAGES=1 pip install --no-cache-dir \
    --constraint /dist/tested.txt "$(echo /dist/*.whl)[lite,mim,deploy]"
WORKDIR /workspace
CMD ["mmseg-twins", "doctor"]
