# Five targets on two platforms: a chain with a diamond, as the demo's, without
# secrets, because upstream would fail to build it otherwise.

target "default" {
  contexts  = { console = "target:console", source = "target:source" }
  platforms = ["linux/amd64", "linux/arm64"]
  output    = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM console
    COPY --from=source /source /copy
    RUN cat /source /copy /console > /all
  EOT
}

target "console" {
  contexts  = { tools = "target:tools" }
  platforms = ["linux/amd64", "linux/arm64"]
  output    = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM tools
    RUN echo console > /console
  EOT
}

target "tools" {
  contexts  = { base = "target:base", source = "target:source" }
  platforms = ["linux/amd64", "linux/arm64"]
  output    = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM base
    COPY --from=source /source /
  EOT
}

target "source" {
  contexts  = { base = "target:base" }
  platforms = ["linux/amd64", "linux/arm64"]
  output    = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM base
    RUN echo source > /source
  EOT
}

target "base" {
  platforms = ["linux/amd64", "linux/arm64"]
  output    = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM scratch
    COPY rootfs /
  EOT
}
