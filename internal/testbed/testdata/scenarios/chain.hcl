# Five targets, two of them with a secret, and a diamond: default needs source
# both directly and through console and tools. See docker/buildx issue 4011.

variable "SOURCE" {}
variable "CONSOLE" {}

target "default" {
  contexts = { console = "target:console", source = "target:source" }
  args     = { SOURCE_SHA256 = sha256(SOURCE), CONSOLE_SHA256 = sha256(CONSOLE) }
  output   = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM console
    COPY --from=source /source /copy
    ARG SOURCE_SHA256
    ARG CONSOLE_SHA256
    RUN printf '%s  %s\n' $SOURCE_SHA256 /source $SOURCE_SHA256 /copy $CONSOLE_SHA256 /console | sha256sum -c
  EOT
}

target "console" {
  contexts = { tools = "target:tools" }
  secret   = ["id=console,env=CONSOLE"]
  output   = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM tools
    RUN --mount=type=secret,id=console,env=CONSOLE [ -n "$CONSOLE" ] && printf %s "$CONSOLE" > /console
  EOT
}

target "tools" {
  contexts = { base = "target:base", source = "target:source" }
  output   = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM base
    COPY --from=source /source /
  EOT
}

target "source" {
  contexts = { base = "target:base" }
  secret   = ["id=source,env=SOURCE"]
  output   = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM base
    RUN --mount=type=secret,id=source,env=SOURCE [ -n "$SOURCE" ] && printf %s "$SOURCE" > /source
  EOT
}

target "base" {
  output = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM scratch
    COPY rootfs /
  EOT
}
