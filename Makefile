# What one types to build, try and test matchlock. `make help` lists it.

SHELL       := bash
.SHELLFLAGS := -eu -o pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := help

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# The same sources give the same bytes wherever they lie. The guest binary knows
# no version: what is cached by its content outlives commits that leave it alone.
GO_BUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=false

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

hello: setup-run build ## from a fresh Debian to a first microVM: packages, build, starter image, boot
	scripts/busybox-image.sh | bin/matchlock image import busybox
	bin/matchlock run busybox sh -c ' \
		echo "hello from $$(uname -sr) on $$(uname -m), in a microVM of its own:"; \
		echo "$$(nproc) CPU, $$(free -m | awk "/^Mem/ { print \$$2 }") MB, up since $$(cut -d. -f1 /proc/uptime) s," \
			"root on $$(awk "\$$2 == \"/\" { t = \$$3 } END { print t }" /proc/mounts)"'

build: ## bin/matchlock, the guest binary inside it
	GOOS=linux $(GO_BUILD) -ldflags '-s -w' -o cmd/matchlock/guest/matchlock-guest ./cmd/matchlock-guest
	sha256sum < cmd/matchlock/guest/matchlock-guest | cut -d' ' -f1 > cmd/matchlock/guest/matchlock-guest.sum
	$(GO_BUILD) -ldflags '-s -w -X main.version=$(VERSION)' -o bin/matchlock ./cmd/matchlock

test: setup-test build lint test-plain test-vm ## set-up, then every check and test; at most 20 minutes on 2 cores

lint: ## gofmt, go vet for three platforms, staticcheck, deadcode; modules and their licences
	@echo '== gofmt'
	@files=$$(gofmt -l .); [ -z "$$files" ] || { echo "gofmt would change:" $$files >&2; exit 1; }
	@for platform in linux/amd64 linux/arm64 darwin/arm64; do \
		echo "== go vet for $$platform"; \
		CGO_ENABLED=0 GOOS=$${platform%/*} GOARCH=$${platform#*/} go vet ./...; \
	done
	@echo '== the guest for linux/arm64, which only its linker knows all about'
	@GOOS=linux GOARCH=arm64 $(GO_BUILD) -o /dev/null ./cmd/matchlock-guest
	@echo '== staticcheck'
	@go tool -modfile=tools/go.mod staticcheck ./...
	@echo '== deadcode'
	@dead=$$(go tool -modfile=tools/go.mod deadcode -test ./...); [ -z "$$dead" ] || { echo "$$dead" >&2; exit 1; }
	@echo '== go mod verify'
	@go mod verify
	@go mod verify -modfile=tools/go.mod
	@echo '== licences'
	@scripts/licenses.sh | diff docs/licenses.md - || { echo 'docs/licenses.md is not of what is built: `make licenses`' >&2; exit 1; }

test-plain: ## the tests that need no VM, no root, no network, under the race detector
	@echo '== go test -race'
	CGO_ENABLED=1 go test -race ./...

test-vm: build ## the tests that boot VMs as well; ARGS='-run TestX ./internal/qemu' narrows them
	@echo '== go test, with VMs'
	scripts/test-vm.sh $(ARGS)

long: build ## the tests too long for `make test`, N times or of size N (default 50)
	MATCHLOCK_TEST_LONG=$(or $(N),50) scripts/test-vm.sh -timeout=0 -run='^TestLong' $(ARGS)

soak: build ## sandboxes that are made, used, copied, killed at random, for M minutes (default 15)
	MATCHLOCK_TEST_SOAK=$(or $(M),15) scripts/test-vm.sh -v -timeout=0 -run='^TestSoak$$' ./cmd/matchlock

fuzz: ## each fuzz test for FUZZTIME (default 30s); ARGS=./internal/wire narrows them
	scripts/fuzz.sh $(or $(FUZZTIME),30s) $(ARGS)

bench: setup-bench build ## what matchlock costs, beside other things; ARGS='-run exec -n 5' narrows it
	@go run ./bench $(ARGS)

licenses: ## docs/licenses.md, of the modules that are built in
	scripts/licenses.sh >docs/licenses.md.part
	mv docs/licenses.md.part docs/licenses.md

vulncheck: ## known vulnerabilities that the code calls, by Go's database: from the Internet, or a module proxy
	scripts/vulncheck.sh

reproducible: ## both binaries built twice, in two folders, are the same to the byte (minutes)
	scripts/reproducible.sh

release: lint build ## dist/: an archive, its bill of materials and sums
	scripts/release.sh $(VERSION)

PREFIX ?= /usr/local

install: build ## the program, man pages and completions, below PREFIX (/usr/local) of DESTDIR
	scripts/install.sh $(PREFIX) $(DESTDIR)

deb: build ## dist/: a Debian package
	scripts/deb.sh $(VERSION)

test-deb: setup-test deb ## the package in a bare Debian 12, as root and as a user (as root, minutes)
	scripts/test-deb.sh dist/matchlock_*.deb

kernel: setup-kernel ## a small kernel of our own, used in place of Debian's from then on (10 minutes)
	scripts/kernel.sh

setup-run setup-test setup-bench setup-kernel: setup-%: # the Debian packages that are missing
	@scripts/setup.sh $*

clean: ## what was built here; caches and images stay
	rm -rf bin dist cmd/matchlock/guest/matchlock-guest*

.PHONY: help hello build test lint test-plain test-vm long soak fuzz bench licenses vulncheck reproducible release install deb test-deb kernel setup-run setup-test setup-bench setup-kernel clean
