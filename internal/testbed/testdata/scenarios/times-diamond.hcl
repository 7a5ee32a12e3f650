# Six targets: four that are linked to the first, and one that is linked to the four.
# Each does one second of work in a stage that does not need the others.

group "default" {
  targets = ["t6"]
}

target "t1" {
  output = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM scratch
    COPY rootfs /
    RUN sleep 1 && echo > /t1
  EOT
}

target "side" {
  name     = "t${n}"
  matrix   = { n = [2, 3, 4, 5] }
  contexts = { base = "target:t1" }
  output   = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM scratch AS work
    COPY rootfs /
    RUN sleep 1 && echo > /t${n}
    FROM base
    COPY --from=work /t${n} /
  EOT
}

target "t6" {
  contexts = { t2 = "target:t2", t3 = "target:t3", t4 = "target:t4", t5 = "target:t5" }
  output   = ["type=cacheonly"]

  dockerfile-inline = <<EOT
    FROM scratch AS work
    COPY rootfs /
    RUN sleep 1 && echo > /t6
    FROM t2
    COPY --from=t3 /t3 /
    COPY --from=t4 /t4 /
    COPY --from=t5 /t5 /
    COPY --from=work /t6 /
  EOT
}
