# A target with a secret that starts from an image in a private registry, on two
# platforms, and a target that continues from it. The target image is pushed
# before.

variable "TOKEN" {}
variable "REGISTRY" {}

target "default" {
  contexts  = { base = "target:base" }
  platforms = ["linux/amd64", "linux/arm64"]
  output    = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM base
    RUN cp /token.sha256 /child
  EOT
}

target "base" {
  args      = { TOKEN_SHA256 = sha256(TOKEN) }
  secret    = ["id=token,env=TOKEN"]
  platforms = ["linux/amd64", "linux/arm64"]
  output    = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM ${REGISTRY}/image:latest
    ARG TOKEN_SHA256
    RUN --mount=type=secret,id=token,required=true \
      echo "$TOKEN_SHA256  /run/secrets/token" > /token.sha256 && sha256sum -c /token.sha256
  EOT
}

target "image" {
  platforms = ["linux/amd64", "linux/arm64"]
  output    = ["type=registry,name=${REGISTRY}/image:latest"]

  dockerfile-inline = <<EOT
    FROM scratch
    COPY rootfs /
  EOT
}
