# CPU:   docker build -t face2scene .
# CUDA:  docker build --build-arg DEVICE=cuda -t face2scene .     (run with --gpus all)
# Page:  docker run -p 7860:7860 -v face2scene-weights:/weights face2scene
# Photo: docker run -v face2scene-weights:/weights -v "$PWD":/work face2scene restore input=/work/photo.jpg output=/work/out
FROM python:3.12-slim-bookworm
ARG DEVICE=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    FACE2SCENE_WEIGHTS=/weights FACE2SCENE_DATA=/data TORCH_HOME=/weights/torch_home

# torch by itself, so that a change of the code does not download it again; PyPI's wheel brings CUDA's libraries
WORKDIR /opt/face2scene
COPY pyproject.toml README.md LICENSE NOTICE ./
RUN case "$DEVICE" in \
      cpu) pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu ;; \
      cuda) pip install torch torchvision ;; \
      *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 1 ;; \
    esac

COPY . .
RUN pip install -e '.[app,photos]' 'dlib-bin>=20,<21' \
 && useradd --create-home user \
 && mkdir -p /weights /data /work && chown user /weights /data /work
USER user
WORKDIR /work
VOLUME ["/weights", "/data"]
EXPOSE 7860
# Weights of others are fetched into the volume at the first start, under their own licences, and checked.
ENTRYPOINT ["/opt/face2scene/docker_entrypoint.sh"]
CMD ["app", "host=0.0.0.0"]
