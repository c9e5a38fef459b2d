# Preparing films, training and export: `docker run --gpus all --shm-size=1g -v .:/work ... train cae`.
#   docker build -f deploy/training.Dockerfile -t xray-anomaly .
FROM python:3.12-slim
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY anomaly anomaly
COPY preprocessing preprocessing
# PyTorch brings the libraries of CUDA with it; the driver is the host's. What is installed is this folder: no version.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[features,tune,export,dicom]' \
    && useradd --uid 10001 --create-home anomaly
USER 10001
WORKDIR /work
ENTRYPOINT ["anomaly"]
CMD ["--help"]
