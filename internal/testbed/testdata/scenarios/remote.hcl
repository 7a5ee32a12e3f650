# Replaces base of chain.hcl, which is in a git repository: the root filesystem
# is on the machine of the client, the marker in the repository.

target "base" {
  contexts = { rootfs = "cwd://rootfs" }
  output   = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM scratch
    COPY --from=rootfs . /
    COPY marker /
    RUN [ "$(cat /marker)" = "from git" ]
  EOT
}
