# The yard of banger: `make help` lists what can be done here.
# Every recipe that needs Go takes the one that scripts/toolchain.sh finds or
# fetches, so a host without a new enough Go is no obstacle.

PREFIX  ?= /usr/local
DESTDIR ?=
GOARCH  ?=

VERSION ?= $(shell git describe --tags --match 'v*' 2>/dev/null)
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null)$(shell git diff --quiet HEAD 2>/dev/null || echo +changes)
DATE    ?= $(shell git log -1 --format=%cI 2>/dev/null)

info    := github.com/banger-dev/banger/internal/buildinfo
ldflags  = -s -w -X $(info).version=$(VERSION) -X $(info).commit=$(COMMIT) -X $(info).date=$(DATE) -X $(info).prefix=$(PREFIX)
# One shell line that ends in a Go program's path.
go       = $$(scripts/toolchain.sh)

bindir  = $(DESTDIR)$(PREFIX)/bin
libdir  = $(DESTDIR)$(PREFIX)/lib/banger
unitdir = $(DESTDIR)$(PREFIX)/lib/systemd
share   = $(DESTDIR)$(PREFIX)/share

# put FILE,MODE,DIR: a new file renamed into place, so that whoever runs the
# old one goes on running it.
put = install -D -m $(2) $(1) $(3)/.$(notdir $(1)).new; mv -f $(3)/.$(notdir $(1)).new $(3)/$(notdir $(1))

.DEFAULT_GOAL := build
.DELETE_ON_ERROR:

.PHONY: help
help: ## list what can be done here
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: quickstart
quickstart: ## from a bare Debian machine to a command in a microVM
	@PREFIX='$(PREFIX)' scripts/quickstart.sh

.PHONY: build
build: ## build bin/banger, bin/bangerd and bin/banger-vsock-agent
	@set -e; go=$(go); export CGO_ENABLED=0; \
	"$$go" build -trimpath -buildvcs=false -ldflags '$(ldflags)' -o bin/ ./cmd/banger ./cmd/bangerd; \
	"$$go" build -trimpath -buildvcs=false -tags netgo,osusergo -ldflags '$(ldflags)' -o bin/ ./cmd/banger-vsock-agent

.PHONY: install
install: ## install below PREFIX (default /usr/local); DESTDIR= for packagers
	@test -x bin/banger -a -x bin/bangerd -a -x bin/banger-vsock-agent || { echo 'nothing to install: run make build first' >&2; exit 1; }
	@set -e; \
	$(call put,bin/banger,755,$(bindir)); \
	$(call put,bin/bangerd,755,$(bindir)); \
	$(call put,bin/banger-vsock-agent,755,$(libdir)); \
	install -d $(share)/bash-completion/completions $(share)/zsh/site-functions $(share)/fish/vendor_completions.d $(share)/man/man1; \
	bin/banger completion bash >$(share)/bash-completion/completions/banger; \
	bin/banger completion zsh >$(share)/zsh/site-functions/_banger; \
	bin/banger completion fish >$(share)/fish/vendor_completions.d/banger.fish; \
	bin/banger man $(share)/man/man1; \
	for unit in user system; do \
		install -d $(unitdir)/$$unit; \
		sed 's|@PREFIX@|$(PREFIX)|g' packaging/systemd/$$unit/bangerd.service >$(unitdir)/$$unit/bangerd.service; \
	done

.PHONY: uninstall
uninstall: ## remove what install put there; VMs, images and settings stay
	@rm -f $(bindir)/banger $(bindir)/bangerd $(share)/bash-completion/completions/banger \
		$(share)/zsh/site-functions/_banger $(share)/fish/vendor_completions.d/banger.fish \
		$(unitdir)/user/bangerd.service $(unitdir)/system/bangerd.service
	@rm -f $(share)/man/man1/banger.1 $(share)/man/man1/banger-*.1
	@rm -f $(libdir)/banger-vsock-agent; rmdir $(libdir) 2>/dev/null || true
	@echo 'Your data stays: settings in $${XDG_CONFIG_HOME:-~/.config}/banger, VMs in $${XDG_STATE_HOME:-~/.local/state}/banger,'
	@echo 'images and kernels in $${XDG_DATA_HOME:-~/.local/share}/banger, downloads in $${XDG_CACHE_HOME:-~/.cache}/banger.'

.PHONY: test
test: ## install what tests need and run all of them, real microVMs included
	@scripts/test.sh

.PHONY: unit
unit: ## the tests that need no root, no QEMU and no network
	@go=$(go); "$$go" vet ./... && "$$go" test ./...

.PHONY: soak
soak: ## the repetitions of the tests in full: hours, not minutes
	@BANGER_SOAK=1 scripts/test.sh

.PHONY: bench
bench: build ## measure starts, exec and copies beside their floors
	@scripts/bench.sh

.PHONY: lint
lint: ## format, vet, golangci-lint or staticcheck, shellcheck, house rules; CI runs it too
	@scripts/lint.sh

.PHONY: vuln
vuln: ## known vulnerabilities in what is linked
	@scripts/vuln.sh

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (default 10s) each
	@scripts/fuzz.sh

.PHONY: generate
generate: ## make the API's code from its protobuf files
	@scripts/generate.sh

.PHONY: clean
clean: ## remove what build made
	@rm -rf bin dist
