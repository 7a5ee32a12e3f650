# A target that reads a private git repository with a token, on two platforms,
# and a target that continues from it without the token.

variable "GIT_URL" {}

target "default" {
  contexts  = { base = "target:base" }
  platforms = ["linux/amd64", "linux/arm64"]
  output    = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM base
    RUN [ "$(cat /file)" = content ]
  EOT
}

target "base" {
  contexts  = { repo = GIT_URL }
  secret    = ["id=GIT_AUTH_TOKEN,env=GIT_TOKEN"]
  platforms = ["linux/amd64", "linux/arm64"]
  output    = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM scratch
    COPY rootfs /
    COPY --from=repo file /
  EOT
}
