# Five targets in a chain. Each does one second of work in a stage that does not need
# the others, and adds the outcome to the target it is linked to.

group "default" {
  targets = ["t5"]
}

target "t1" {
  output = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM scratch
    COPY rootfs /
    RUN sleep 1 && echo > /t1
  EOT
}

target "chain" {
  name     = "t${n}"
  matrix   = { n = [2, 3, 4, 5] }
  contexts = { base = "target:t${n - 1}" }
  output   = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM scratch AS work
    COPY rootfs /
    RUN sleep 1 && echo > /t${n}
    FROM base
    COPY --from=work /t${n} /
  EOT
}
