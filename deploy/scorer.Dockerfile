# A detector at work without PyTorch: scores a bundle (`anomaly export`) over HTTP and as a DICOM node.
#   docker build -f deploy/scorer.Dockerfile -t xray-anomaly-scorer .
#   docker run --rm --read-only --tmpfs /tmp -v ./bundle:/bundle:ro -v spool:/spool -p 127.0.0.1:8000:8000 \
#       -v ./token:/run/secrets/token:ro xray-anomaly-scorer
FROM python:3.12-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY anomaly anomaly
COPY preprocessing preprocessing
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
COPY requirements /requirements
RUN pip install --no-cache-dir --no-compile --requirement /requirements/serve.txt
COPY --from=wheel /wheels /wheels
# The package's own list of what it needs has torch in it, which scoring a bundle does without.
RUN pip install --no-cache-dir --no-deps /wheels/*.whl \
    && useradd --system --uid 10001 --create-home anomaly \
    && install --directory --owner=anomaly --mode=0700 /spool
USER 10001
ENV HOME=/tmp TMPDIR=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
VOLUME /spool
EXPOSE 8000 11112
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["anomaly"]
CMD ["serve", "/bundle", "--host", "0.0.0.0", "--port", "8000", "--token-file", "/run/secrets/token", "--spool", "/spool"]
