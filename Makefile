# Two commands do everything: `make demo` and `make test`. Each installs what it lacks.
.PHONY: demo test kernel lint bench fuzz repro clean setup
.DEFAULT_GOAL := demo

export CGO_ENABLED := 0
export KERNEL_SOURCE
FUZZTIME ?= 20s
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0

demo: setup
	go run ./cmd/ampoule demo --out out/demo

test: setup lint
	go run ./cmd/ampoule build --kernel --profile simulation --out out/simulation
	-go run ./cmd/ampoule build --kernel --profile production --out out/production # its tests say if it cannot be
	go test -count=1 -timeout 60m ./...

kernel: setup
	go run ./cmd/ampoule build --kernel --profile production --out out/production
	go run ./cmd/ampoule build --kernel --profile simulation --out out/simulation

lint:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -d $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...
	@out=$$(go run $(GOVULNCHECK) ./... 2>&1) && echo "$$out" || case "$$out" in \
	  *"fetching vulnerabilities"*) echo "lint: govulncheck did not run: its database cannot be reached from here" ;; \
	  *) echo "$$out"; exit 1 ;; esac

bench: setup
	go run ./cmd/ampoule bench
	go run ./cmd/ampoule bench pull
	go run ./cmd/ampoule bench boot --memory
	go test -run '^$$' -bench . -benchtime 3x ./image ./internal/bench ./internal/pairhash

fuzz:
	@grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r d; do \
	  for f in $$(grep -ho '^func Fuzz[A-Za-z0-9]*' $$d/*_test.go | cut -c6-); do \
	    echo "fuzz $$d $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$d || exit 1; done; done

repro: setup
	AMPOULE_REPRO=1 go test -count=1 -timeout 90m -v -run TestRepro ./mkimage

setup:
	@.ci/setup

clean:
	rm -rf out
