# A target whose step uses an SSH agent if there is one, on two platforms, and a
# target that continues from it. The step succeeds in any case, as it would when
# git falls back to another way, so default checks what it has seen. See
# docker/buildx issue 2033.

target "default" {
  contexts  = { base = "target:base" }
  platforms = ["linux/amd64", "linux/arm64"]
  output    = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM base
    RUN cat /agent && [ "$(cat /agent)" = forwarded ]
  EOT
}

target "base" {
  ssh       = ["default"]
  platforms = ["linux/amd64", "linux/arm64"]
  output    = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM scratch
    COPY rootfs /
    RUN --mount=type=ssh [ -S "$SSH_AUTH_SOCK" ] && echo forwarded > /agent || echo missing > /agent
  EOT
}
