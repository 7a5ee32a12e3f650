# Every target is one command of cmd/graphload, which explains itself with --help, and
# has more commands than these. RELEASE=v0.33.1 selects a release of BuildKit, and
# ARGS='…' adds flags: make demo ARGS='--runs 3'.
ifdef UPSTREAM
$(error UPSTREAM is now RELEASE)
endif
GRAPHLOAD = go run ./cmd/graphload $(if $(RELEASE),--release $(RELEASE))
PREFIX ?= /usr/local
INSTALL = --prefix $(PREFIX) --destdir "$(DESTDIR)"

.PHONY: help build test demo install uninstall dist lint conformance integration bench engine

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

build: ## build buildkitd and buildctl into bin
	$(GRAPHLOAD) build $(ARGS)

test: ## run the tests of this repository and of the packages that it changes
	$(GRAPHLOAD) test $(ARGS)

demo: ## bake chained targets on upstream's daemon and on this one
	$(GRAPHLOAD) demo $(ARGS)

install: ## build and install into PREFIX, /usr/local by default
	$(GRAPHLOAD) install $(INSTALL) $(ARGS)

uninstall: ## remove what install has installed
	$(GRAPHLOAD) uninstall $(INSTALL) $(ARGS)

dist: ## write archives and images for linux/amd64 and linux/arm64 into dist
	$(GRAPHLOAD) dist $(ARGS)

lint: ## check added files with upstream's rules, and the rest with its own
	$(GRAPHLOAD) lint $(ARGS)

conformance: ## run upstream's own tests with both daemons
	$(GRAPHLOAD) conformance $(ARGS)

integration: ## run all end-to-end tests and write the table of clients
	$(GRAPHLOAD) integration $(ARGS)

bench: ## compare the cost of lazy solves with upstream's daemon
	$(GRAPHLOAD) bench $(ARGS)

engine: ## build the Docker engine with the change into bin
	$(GRAPHLOAD) engine $(ARGS)
