# A matrix of targets with a secret and one of targets that continue from them.

variable "TOKEN" {}

group "default" {
  targets = ["child"]
}

target "child" {
  name     = "child-${item}"
  matrix   = { item = ["a", "b", "c"] }
  contexts = { base = "target:base-${item}" }
  output   = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM base
    RUN cp /token.sha256 /child
  EOT
}

target "base" {
  name   = "base-${item}"
  matrix = { item = ["a", "b", "c"] }
  args   = { TOKEN_SHA256 = sha256(TOKEN), ITEM = item }
  secret = ["id=token,env=TOKEN"]
  output = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM scratch
    COPY rootfs /
    ARG TOKEN_SHA256
    ARG ITEM
    RUN --mount=type=secret,id=token,required=true \
      echo "$TOKEN_SHA256  /run/secrets/token" > /token.sha256 && sha256sum -c /token.sha256 && echo $ITEM > /item
  EOT
}
