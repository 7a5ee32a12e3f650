# Every target is one command of cmd/graphload, which explains itself with --help.
GRAPHLOAD = go run ./cmd/graphload

.PHONY: tree build pristine patch seams demo test lint bench clients conformance releases series integration soak dist dist-check install uninstall docker audit fuzz

PREFIX ?= /usr/local

tree:
	$(GRAPHLOAD) tree

build:
	$(GRAPHLOAD) build

pristine:
	$(GRAPHLOAD) build --pristine

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
	$(GRAPHLOAD) conformance $(if $(RACE),--race --suite client)

releases:
	$(GRAPHLOAD) releases

series:
	$(GRAPHLOAD) patch --series build/series --check

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
