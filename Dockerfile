# One file, two images: `service` runs the API, the workers and the migrations; `lab` adds JupyterLab.
FROM python:3.13-slim AS service
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --create-home --uid 10001 app
WORKDIR /srv
COPY .ci/build.txt requirements-service.txt ./
RUN pip install --require-hashes -r build.txt \
 && uv pip install --system --no-cache --require-hashes -r requirements-service.txt
COPY pyproject.toml README.md LICENSE settings.ini ./
COPY support_rag support_rag
COPY data data
RUN uv pip install --system --no-cache --no-build-isolation --no-deps .
USER app
EXPOSE 8000
CMD ["support-rag", "serve", "--host", "0.0.0.0", "--port", "8000"]

FROM service AS lab
USER root
COPY requirements.txt ./
RUN uv pip install --system --no-cache --require-hashes -r requirements.txt
COPY --chown=app nbs nbs
COPY --chown=app evals evals
RUN chown app /srv
USER app
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser", "--ServerApp.root_dir=/srv"]
