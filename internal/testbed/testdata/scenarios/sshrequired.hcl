# A target whose step needs an SSH agent, on two platforms, and a target that
# continues from it.

target "default" {
  contexts  = { base = "target:base" }
  platforms = ["linux/amd64", "linux/arm64"]
  output    = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM base
    RUN [ "$(cat /agent)" = forwarded ]
  EOT
}

target "base" {
  ssh       = ["default"]
  platforms = ["linux/amd64", "linux/arm64"]
  output    = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM scratch
    COPY rootfs /
    RUN --mount=type=ssh,required=true [ -S "$SSH_AUTH_SOCK" ] && echo forwarded > /agent
  EOT
}
