# The translator: litellm, and a program of ours that needs nothing else. Gateways alone reach it, with a token.
#
#   docker build --file deploy/translator.Dockerfile --tag penstock-translator:0.1.0 .
#   docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#       --env PENSTOCK_TRANSLATOR_TOKEN penstock-translator:0.1.0

FROM python:3.13.14-slim-trixie AS build
WORKDIR /build
COPY requirements/translator.lock ./requirements/
RUN python -m venv --without-pip /opt/translator \
    && python -m pip --python /opt/translator/bin/python install --no-cache-dir --require-hashes --only-binary :all: \
        --requirement requirements/translator.lock

FROM python:3.13.14-slim-trixie
LABEL org.opencontainers.image.title="Penstock translator" \
    org.opencontainers.image.description="litellm behind a token, for providers whose wire Penstock does not speak" \
    org.opencontainers.image.licenses="Apache-2.0"
RUN python -m pip uninstall --yes pip \
    && useradd --uid 10001 --user-group --no-log-init --no-create-home --home-dir /tmp \
        --shell /usr/sbin/nologin penstock
COPY --from=build /opt/translator /opt/translator
# What of it the program does not take is not importable here.
COPY router /opt/translator/router
ENV PATH=/opt/translator/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
WORKDIR /opt/translator
USER 10001:10001
EXPOSE 8090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-ISc", "import http.client; asked = http.client.HTTPConnection('127.0.0.1', 8090, timeout=2); asked.request('GET', '/healthz'); raise SystemExit(asked.getresponse().status != 200)"]
# By its path, and isolated: what lies in the working folder is not imported.
ENTRYPOINT ["python", "-I", "/opt/translator/router/translator.py"]
CMD ["--host", "0.0.0.0", "--port", "8090"]
