# The pipeline and its tests. Build: docker build -t d2dmoe .
# Run, results in the current folder:
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" d2dmoe
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" d2dmoe snakemake --snakefile /opt/d2dmoe/Snakefile -n
# The tests:  docker run --rm d2dmoe sh -c "cd /opt/d2dmoe && pytest"
# GPUs: add `--gpus all`. Apptainer: apptainer build d2dmoe.sif docker-daemon://d2dmoe:latest && apptainer run d2dmoe.sif
FROM python:3.12-slim-bookworm

# Triton compiles a small C module for its driver; git names the commit in the records of jobs.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc git libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir uv

WORKDIR /opt/d2dmoe
# The packages first: an edit of the code does not install them again.
COPY pyproject.toml README.md LICENSE ./
RUN uv sync --no-install-project --no-cache
COPY . .
RUN uv sync --no-cache

# A container may run as any user, whose number has no name here, and, under Apptainer, read-only: nothing
# is written but in the working folder and in the home folder that is given.
ENV PATH=/opt/d2dmoe/.venv/bin:$PATH HOME=/tmp LOGNAME=user PYTHONDONTWRITEBYTECODE=1
WORKDIR /work
CMD ["snakemake", "--snakefile", "/opt/d2dmoe/Snakefile", "all"]
