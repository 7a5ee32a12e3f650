# A target with a secret that is built alone and as the context of three others,
# which have no secret.

variable "TOKEN" {}

group "default" {
  targets = ["base", "one", "two", "three"]
}

target "base" {
  args   = { TOKEN_SHA256 = sha256(TOKEN) }
  secret = ["id=token,env=TOKEN"]
  output = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM scratch
    COPY rootfs /
    ARG TOKEN_SHA256
    RUN --mount=type=secret,id=token,required=true \
      echo "$TOKEN_SHA256  /run/secrets/token" > /token.sha256 && sha256sum -c /token.sha256
  EOT
}

target "chained" {
  contexts = { base = "target:base" }
  output   = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM base
    ARG NAME
    RUN cp /token.sha256 /$NAME
  EOT
}

target "one" {
  inherits = ["chained"]
  args     = { NAME = "one" }
}

target "two" {
  inherits = ["chained"]
  args     = { NAME = "two" }
}

target "three" {
  inherits = ["chained"]
  args     = { NAME = "three" }
}
