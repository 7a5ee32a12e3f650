# Every target is one command of cmd/graphload, which explains itself with --help.
# RELEASE=v0.33.1 selects a release, ARGS='…' adds flags to conformance, releases,
# series, engine and engine-test.
GRAPHLOAD = go run ./cmd/graphload $(if $(RELEASE),--release $(RELEASE))

.PHONY: tree build unmodified buildx patch seams demo test lint bench clients conformance releases series integration soak dist dist-check install uninstall docker audit fuzz engine engine-test

PREFIX ?= /usr/local

tree:
	$(GRAPHLOAD) tree

build:
	$(GRAPHLOAD) build

unmodified:
	$(GRAPHLOAD) build --unmodified

buildx:
	$(GRAPHLOAD) buildx

patch:
	$(GRAPHLOAD) patch

seams:
	$(GRAPHLOAD) seams

demo:
	$(GRAPHLOAD) demo

test:
	$(GRAPHLOAD) test

lint:
	$(GRAPHLOAD) lint

bench:
	$(GRAPHLOAD) bench

clients:
	$(GRAPHLOAD) clients

conformance:
	$(GRAPHLOAD) conformance $(if $(filter-out 0,$(RACE)),--race $(if $(findstring --suite,$(ARGS)),,--suite client)) $(ARGS)

releases:
	$(GRAPHLOAD) releases $(ARGS)

series:
	$(GRAPHLOAD) patch --series --check $(if $(RELEASE),,--all-releases) $(ARGS)
	$(if $(RELEASE),,$(GRAPHLOAD) patch --series --check --module buildx)

integration:
	$(GRAPHLOAD) integration

soak:
	$(GRAPHLOAD) soak

dist:
	$(GRAPHLOAD) dist

dist-check:
	$(GRAPHLOAD) dist --check

install:
	$(GRAPHLOAD) install --prefix $(PREFIX) --destdir "$(DESTDIR)"

uninstall:
	$(GRAPHLOAD) uninstall --prefix $(PREFIX) --destdir "$(DESTDIR)"

docker:
	$(GRAPHLOAD) docker

audit:
	$(GRAPHLOAD) audit

fuzz:
	$(GRAPHLOAD) fuzz

engine:
	$(GRAPHLOAD) engine $(ARGS)

engine-test:
	$(GRAPHLOAD) engine --test $(ARGS)
