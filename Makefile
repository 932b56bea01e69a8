# Sluice. `make help` lists the targets. Only Go, git and make are needed beforehand; what runs a cluster needs root
# on Debian, and installs the Debian packages it lacks by itself.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-print-directory

ROOT     := $(CURDIR)
STATE    := $(ROOT)/.cluster
BUILD    := $(STATE)/build
KUBECTL  ?= kubectl
KUSTOMIZATION ?= manifests/base
IMAGES   := activator adapter scaler function
MODULES  := . test/cluster test/e2e test/bench test/runtimes
TOOL      = go tool -modfile=$(ROOT)/go.tools.mod
CLUSTER   = go -C $(ROOT)/test/cluster run ./cmd/cluster
# What runs in the test cluster's network: its API server, its Services and its pods are reachable only there.
INSIDE    = . $(STATE)/env; nsenter --net=/run/netns/$$SLUICE_NETNS
VERSION  := $(shell git describe --always --dirty 2>/dev/null || echo dev)
export CGO_ENABLED ?= 0
export GOFLAGS := -buildvcs=false -trimpath

##@ See it
.PHONY: demo
demo: ## a cluster, Sluice and a function: cold start, load, scaling, sleep (root, Debian)
	@$(MAKE) deploy
	@go build -o $(BUILD)/demo ./test/demo
	@$(STATE)/bin/kubectl apply -f test/function/function.yaml
	@$(INSIDE) $(BUILD)/demo --kubeconfig $$KUBECONFIG

.PHONY: demo-down
demo-down: cluster-down ## end what demo left running

##@ Test
.PHONY: test
test: ## everything: check, integration, benchmarks in small and, as root, the stories on a real cluster
	@$(MAKE) check
	@$(CLUSTER) build -dir $(STATE)
	@$(MAKE) servers bench-short
	@.ci/beside $(LANES)
	@if [ -n "$(HOST)" ]; then $(MAKE) stories SKIP='$(BESIDE)'; \
	else \
	  $(if $(RACE),,echo "NOT RUN: the race detector, which needs a C compiler. Run it with: sudo make unit";) \
	  echo "NOT RUN: the cluster stories of test/e2e, which need root on Debian. Run them with: sudo make e2e"; \
	  if [ "$${CI:-}" = true ]; then echo "CI=true: that is a failure."; exit 1; fi; \
	fi

# What mostly waits runs side by side, after what computes. Stories that are about moments, or that stop a part of Sluice,
# have the machine for themselves afterwards.
HOST   = $(shell [ "$$(id -u)" = 0 ] && [ "$$(uname -s)" = Linux ] && echo yes)
BESIDE = TestStories/functions
LANES  = 'integration-api $(if $(HOST),cluster-stories)' 'integration-servers' $(if $(HOST),'deploy stories RUN=$(BESIDE)')

.PHONY: check
check: verify lint unit ## what needs no cluster: generated files, lint, unit tests with -race

# The race detector needs a C compiler and libc's headers. Root on Debian installs them; others do without.
RACE = $(shell command -v gcc >/dev/null && [ -e /usr/include/stdlib.h ] && echo -race)

.PHONY: compiler
compiler:
	@if [ -z "$(RACE)" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "The race detector needs a C compiler: installing the Debian packages gcc and libc6-dev."; \
	    apt-get update -qq -o DPkg::Lock::Timeout=120 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o DPkg::Lock::Timeout=120 --no-install-recommends gcc libc6-dev >/dev/null; \
	  else echo "No C compiler: unit tests run without the race detector. (Debian: apt-get install gcc libc6-dev)"; fi; fi

.PHONY: unit
unit: compiler ## unit tests with the race detector
	@echo "== unit tests"
	@for m in $(MODULES); do CGO_ENABLED=$(if $(RACE),1,0) go -C $$m test $(RACE) $(TESTFLAGS) ./...; done

.PHONY: integration
integration: integration-api integration-servers ## real API server, HPA controller, Prometheus and Kafka on loopback, no node, no root

.PHONY: integration-api
integration-api:
	@$(CLUSTER) build -dir $(STATE)
	@echo "== integration tests"
	@go -C test/cluster test -count=1 -tags cluster -timeout 5m -run 'TestControlPlane|TestAggregation' $(TESTFLAGS) .
	@go -C test/e2e test -count=1 -tags integration -timeout 10m $(TESTFLAGS) ./integration -args -state $(STATE)

# Prometheus and Kafka, fetched once for all that run them.
.PHONY: servers
servers:
	@go run ./test/prometheus/find -dir $(STATE)/prometheus
	@go run ./test/kafka/find -dir $(STATE)/kafka

.PHONY: integration-servers
integration-servers: servers
	@echo "== tests against Prometheus and Kafka"
	@go test -count=1 -tags integration -timeout 8m $(TESTFLAGS) ./test/prometheus ./test/kafka -args -state $(STATE)

.PHONY: e2e
e2e: deploy ## the stories of test/e2e on the test cluster (root, Debian); RUN=regexp picks some
	@$(MAKE) stories
	$(if $(RUN),,@$(MAKE) cluster-stories)

# Most of what runs side by side waits, so it is more than there are cores.
.PHONY: stories
stories: servers
	@echo "== stories on the cluster"
	@go -C test/e2e/prometheus-adapter build -o $(BUILD)/prometheus-adapter sigs.k8s.io/prometheus-adapter/cmd/adapter
	@go -C test/e2e test -c -tags e2e -o $(BUILD)/e2e.test .
	@$(INSIDE) $(BUILD)/e2e.test -test.v -test.count=1 -test.timeout $(if $(SOAK),0,25m) -test.parallel 8 \
	  $(if $(RUN),-test.run '$(RUN)') $(if $(SKIP),-test.skip '$(SKIP)') -root $(ROOT) $(if $(SOAK),-soak $(SOAK)) | tee $(STATE)/stories.log || \
	  { .ci/failures $(STATE)/stories.log; exit 1; }

.PHONY: soak
soak: deploy ## SOAK=10m of 20 requests per second by every way in, asleep and awake: none fails, none comes twice (root, Debian)
	@$(MAKE) stories RUN='TestStories/gate/Steady' SOAK=$(or $(SOAK),10m)

.PHONY: cluster-stories
cluster-stories: ## the test cluster itself: up, kill -9 of half of it, down, nothing left (root, Debian)
	@echo "== stories of the test cluster"
	@go -C test/cluster test -count=1 -v -tags cluster -timeout 10m -run TestFullCluster .

.PHONY: runtimes
runtimes: ## capture anew what the presets' runtimes expose (Python, Node, JDK with Maven, and their registries); NAME=otel-node for one
	@go -C test/runtimes run ./capture $(NAME)
	@go test -count=1 -run TestPresets ./providers/requests

.PHONY: bench-adapter
bench-adapter: ## the adapter beside its floor, with FUNCTIONS=10000, READS=20000, IDLE=60s, and a profile of reads; no root
	@$(CLUSTER) build -dir $(STATE)
	@go -C test/bench build -o $(BUILD)/bench-adapter ./adapter
	@mkdir -p $(STATE)/bench
	@cd test/bench && $(BUILD)/bench-adapter -state $(STATE) -functions $(or $(FUNCTIONS),10000) -reads $(or $(READS),20000) \
	  -idle $(or $(IDLE),60s) -profile $(STATE)/bench/reads-cpu.pprof -profiling $(or $(PROFILE),20s)

.PHONY: bench-pods
bench-pods: ## the adapter while it asks PODS=20000 pods, beside a bare HTTP client, for SECONDS=60 each (root)
	@$(CLUSTER) build -dir $(STATE)
	@go build -o $(BUILD)/adapter ./cmd/adapter
	@go -C test/bench build -o $(BUILD)/bench-pods ./pods
	@cd test/bench && $(BUILD)/bench-pods -state $(STATE) -adapter $(BUILD)/adapter -out $(STATE)/bench \
	  -pods $(or $(PODS),20000) -span $(or $(SECONDS),60)s -profiling $(or $(PROFILE),20s) $(if $(ROUNDS),-rounds $(ROUNDS))

.PHONY: bench-kafka
bench-kafka: ## the lag of GROUPS=1000 on TOPICS=200, beside a client each for TRIGGERS=100 of them, for SECONDS=60 each; no root
	@go -C test/bench build -o $(BUILD)/bench-kafka ./kafka
	@go -C test/bench build -o $(BUILD)/bench-kafka-usual ./kafka/usual
	@mkdir -p $(STATE)/bench
	@cd test/bench && $(BUILD)/bench-kafka -state $(STATE) -usual $(BUILD)/bench-kafka-usual \
	  -groups $(or $(GROUPS),1000) -topics $(or $(TOPICS),200) -triggers $(or $(TRIGGERS),100) -span $(or $(SECONDS),60)s \
	  -profile $(STATE)/bench/kafka-cpu.pprof -profiling $(or $(PROFILE),20s)

.PHONY: bench-activator
bench-activator: ## the activator beside its floors: warm (ROUNDS=10, SPAN=4s, RATE=1000), HELD=10000, WAKES=500, then bench-cold (root)
	@$(MAKE) bench-gate
	@$(MAKE) bench-cold

.PHONY: bench-gate
bench-gate: PARTS ?= warm,held,wakes
bench-gate: ## bench-activator without its cold part, which needs a cluster; PARTS=warm,held,wakes, PROFILE=10s for a profile (root)
	@$(CLUSTER) build -dir $(STATE)
	@go build -o $(BUILD)/activator ./cmd/activator
	@go -C test/bench build -o $(BUILD)/bench-activator ./activator
	@cd test/bench && $(BUILD)/bench-activator -state $(STATE) -activator $(BUILD)/activator -out $(STATE)/bench \
	  -parts $(PARTS) -rounds $(or $(ROUNDS),10) -span $(or $(SPAN),4s) -rate $(or $(RATE),1000) \
	  -held $(or $(HELD),10000) -wakes $(or $(WAKES),500) $(if $(PROFILE),-profiling $(PROFILE))

.PHONY: bench-cold
bench-cold: deploy ## cold starts on the test cluster beside a bare write of the scale, COLDS=12 of each (root, Debian)
	@go -C test/bench build -o $(BUILD)/bench-activator ./activator
	@$(INSIDE) $(BUILD)/bench-activator -role cold -kubeconfig $$KUBECONFIG -audit $(STATE)/logs/audit.log -colds $(or $(COLDS),12)

.PHONY: bench-short
bench-short: ## the benchmarks in small, to see that they run
	@echo "== benchmarks in small: their figures mean nothing"
	@$(MAKE) bench-adapter FUNCTIONS=100 READS=500 IDLE=3s PROFILE=1s
	@$(MAKE) bench-kafka GROUPS=20 TRIGGERS=20 TOPICS=5 SECONDS=4 PROFILE=1s
	@if [ "$$(id -u)" = 0 ]; then $(MAKE) bench-pods PODS=200 SECONDS=5 PROFILE=1s; \
	  $(MAKE) bench-gate ROUNDS=1 SPAN=1s RATE=200 HELD=200 WAKES=20; \
	else echo "NOT RUN: the adapter beside many pods, and the activator, which need root. Run them with: sudo make bench-pods bench-gate"; fi

.PHONY: lint
lint: ## golangci-lint over every module
	@echo "== lint (the first run compiles golangci-lint, which takes minutes)"
	@mkdir -p $(BUILD) && $(TOOL) -n golangci-lint >/dev/null
	@for m in $(MODULES); do echo "lint $$m"; (cd $$m && $(TOOL) golangci-lint run --allow-parallel-runners --config $(ROOT)/.golangci.yml --build-tags e2e,integration,cluster ./...); done

##@ Generate
.PHONY: generate
generate: ## deep copies and the CRD, from api/v1alpha1
	@$(TOOL) controller-gen object paths=./api/...
	@$(TOOL) controller-gen crd paths=./api/... output:crd:stdout > manifests/crd/functions.yaml

.PHONY: verify
verify: ## fails where generate would change a file
	@echo "== generated files"
	@tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	$(TOOL) controller-gen crd paths=./api/... output:crd:stdout > $$tmp/functions.yaml; \
	diff -u manifests/crd/functions.yaml $$tmp/functions.yaml || { echo "run make generate"; exit 1; }; \
	$(TOOL) controller-gen object paths=./api/... output:object:dir=$$tmp; \
	diff -u api/v1alpha1/zz_generated.deepcopy.go $$tmp/zz_generated.deepcopy.go || { echo "run make generate"; exit 1; }
	@for m in $(MODULES); do go -C $$m mod tidy -diff || { echo "run go mod tidy in $$m"; exit 1; }; done

.PHONY: format
format: ## gofumpt and gci over every module
	@for m in $(MODULES); do (cd $$m && $(TOOL) golangci-lint fmt --config $(ROOT)/.golangci.yml); done

##@ Install
.PHONY: images
images: ## the images as docker-archive files, .cluster/images/NAME.tar
	@mkdir -p $(BUILD) $(STATE)/images
	@for i in $(IMAGES); do \
	  pkg=./cmd/$$i; [ $$i = function ] && pkg=./test/function; \
	  echo "image docker.io/sluice/$$i:dev"; \
	  go build -ldflags '-s -w' -o $(BUILD)/$$i $$pkg; \
	  $(CLUSTER) image -o $(STATE)/images/$$i.tar -name docker.io/sluice/$$i:dev -binary $(BUILD)/$$i; \
	done

# The APIServices that the kustomization brings: an overlay may leave them to another adapter.
APISERVICES = $$($(KUBECTL) kustomize $(KUSTOMIZATION) | sed -n 's/^  name: \(v1beta[0-9]*\.custom\.metrics\.k8s\.io\)$$/\1/p')

.PHONY: install
install: ## manifests into the current kubeconfig (KUSTOMIZATION=dir for an overlay of your own)
	@for a in $(APISERVICES); do \
	  owner=$$($(KUBECTL) get apiservice $$a --ignore-not-found -o 'jsonpath={.spec.service.namespace}/{.spec.service.name}'); \
	  case "$$owner" in ""|sluice-system/sluice-adapter) ;; \
	  *) echo "install: APIService $$a belongs to $$owner. Remove that adapter, or keep it: docs/operations.md, Beside prometheus-adapter. Nothing was changed."; exit 1;; esac; \
	done
	@owner=$$($(KUBECTL) get apiservice v1beta1.external.metrics.k8s.io --ignore-not-found -o 'jsonpath={.spec.service.namespace}/{.spec.service.name}'); \
	case "$$owner" in ""|sluice-system/sluice-adapter) ;; \
	*) echo "APIService v1beta1.external.metrics.k8s.io belongs to $$owner and stays: Sluice serves custom metrics alone.";; esac
	$(KUBECTL) apply -k $(KUSTOMIZATION)
	@$(MAKE) wait-installed

.PHONY: wait-installed
wait-installed:
	@for d in adapter activator scaler; do $(KUBECTL) -n sluice-system rollout status deployment/sluice-$$d --timeout=180s; done
	@for a in $(APISERVICES); do $(KUBECTL) wait --for=condition=Available --timeout=60s apiservice/$$a; done

# Functions go first, while the scaler is there to wake what sleeps; it waits for a ready pod for as long as the
# Function's activation.timeout, 10m at most. An APIService that belongs to another adapter stays. The one of external
# metrics goes last: while those of custom metrics are there, the adapter makes it again.
.PHONY: uninstall
uninstall: ## the reverse: functions first, so that what sleeps runs again, then everything of Sluice
	@if $(KUBECTL) get crd functions.sluice.dev >/dev/null 2>&1; then \
	  echo "Removing every Function; what sleeps is woken first."; \
	  $(KUBECTL) delete functions.sluice.dev --all --all-namespaces --timeout=660s || { \
	    echo "uninstall: these Functions are still there; see to their pods, or to the scaler, and run it again:"; \
	    $(KUBECTL) get functions.sluice.dev --all-namespaces; exit 1; }; \
	fi
	@for a in v1beta1.custom.metrics.k8s.io v1beta2.custom.metrics.k8s.io v1beta1.external.metrics.k8s.io; do \
	  owner=$$($(KUBECTL) get apiservice $$a --ignore-not-found -o 'jsonpath={.spec.service.namespace}/{.spec.service.name}'); \
	  case "$$owner" in sluice-system/sluice-adapter) $(KUBECTL) delete apiservice $$a;; \
	  "") ;; *) echo "APIService $$a belongs to $$owner and stays.";; esac; \
	done
	@$(KUBECTL) kustomize $(KUSTOMIZATION) | awk 'BEGIN {RS = "---\n"; ORS = "---\n"} !/kind: APIService/' | \
	  $(KUBECTL) delete -f - --ignore-not-found --timeout=180s

##@ The test cluster
.PHONY: cluster-up
cluster-up: ## a real one-node Kubernetes, built from Go modules (root, Debian)
	@$(CLUSTER) up -dir $(STATE)

.PHONY: cluster-down
cluster-down: ## end it, leaving nothing behind
	@$(CLUSTER) down -dir $(STATE)

.PHONY: deploy
deploy: cluster-up images ## the images into the test cluster, and Sluice from this tree
	@$(CLUSTER) load -dir $(STATE) $(IMAGES:%=$(STATE)/images/%.tar)
	@$(MAKE) install KUBECTL=$(STATE)/bin/kubectl
	@$(STATE)/bin/kubectl -n sluice-system rollout restart deployment >/dev/null
	@$(MAKE) wait-installed KUBECTL=$(STATE)/bin/kubectl

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
