# A target with a secret whose cache is in a registry, on two platforms, and a
# target that continues from it and knows nothing of the cache.

variable "TOKEN" {}
variable "REGISTRY" {}
variable "RUN" {}

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
  args       = { TOKEN_SHA256 = sha256(TOKEN) }
  secret     = ["id=token,env=TOKEN"]
  platforms  = ["linux/amd64", "linux/arm64"]
  cache-from = ["type=registry,ref=${REGISTRY}/cache:${RUN}"]
  cache-to   = ["type=registry,ref=${REGISTRY}/cache:${RUN},mode=max"]
  output     = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM scratch
    COPY rootfs /
    ARG TOKEN_SHA256
    RUN --mount=type=secret,id=token,required=true \
      echo "$TOKEN_SHA256  /run/secrets/token" > /token.sha256 && sha256sum -c /token.sha256
  EOT
}
