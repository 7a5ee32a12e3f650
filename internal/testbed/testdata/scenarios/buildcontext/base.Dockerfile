FROM scratch
COPY rootfs /
RUN --mount=type=secret,id=token,required=true cp /run/secrets/token /token
