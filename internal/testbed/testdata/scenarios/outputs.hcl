# A target with a secret, on two platforms, and targets that continue from it
# with an output of every kind. All but the one for docker, which cannot hold
# them, have attestations.

variable "TOKEN" {}
variable "REGISTRY" {}
variable "RUN" {}
variable "OUT" {}

group "default" {
  targets = ["image", "registry", "oci", "local", "docker"]
}

target "chained" {
  contexts  = { base = "target:base" }
  platforms = ["linux/amd64", "linux/arm64"]
  attest    = ["type=provenance,mode=max", "type=sbom,disabled=true"]

  dockerfile-inline = <<EOT
    FROM base
    RUN cp /token.sha256 /child
  EOT
}

target "image" {
  inherits = ["chained"]
  output   = ["type=image,push=true,name=${REGISTRY}/image:${RUN}"]
}

target "registry" {
  inherits = ["chained"]
  output   = ["type=registry,name=${REGISTRY}/registry:${RUN}"]
}

target "oci" {
  inherits = ["chained"]
  output   = ["type=oci,dest=${OUT}/oci.tar"]
}

target "local" {
  inherits = ["chained"]
  output   = ["type=local,dest=${OUT}/local"]
}

target "docker" {
  inherits  = ["chained"]
  platforms = ["linux/amd64"]
  attest    = ["type=provenance,disabled=true", "type=sbom,disabled=true"]
  output    = ["type=docker,dest=${OUT}/docker.tar"]
}

target "base" {
  args      = { TOKEN_SHA256 = sha256(TOKEN) }
  secret    = ["id=token,env=TOKEN"]
  platforms = ["linux/amd64", "linux/arm64"]
  output    = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM scratch
    COPY rootfs /
    ARG TOKEN_SHA256
    RUN --mount=type=secret,id=token,required=true \
      echo "$TOKEN_SHA256  /run/secrets/token" > /token.sha256 && sha256sum -c /token.sha256
  EOT
}
