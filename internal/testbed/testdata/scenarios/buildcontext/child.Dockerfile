FROM base
COPY --from=repo file /
ARG TOKEN_SHA256
RUN [ "$(cat /file)" = content ] && echo "$TOKEN_SHA256  /token" | sha256sum -c
