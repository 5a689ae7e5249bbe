# Entry points for people and for CI. The work is in scripts/ and in cargo; each recipe is short on purpose.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup models build bench bench-big bench-pager llama-bench test fmt upgrade-llama clean

# Steps of `make test` to run, such as STEPS="fmt clippy"; empty: all of them.
STEPS ?=
# Arguments for `make bench`, handed to the bench binary after the defaults.
BENCH_ARGS ?=
# Arguments for the patched llama-bench.
LLAMA_BENCH_ARGS ?= --help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## check for system packages and install what is missing
	@scripts/setup.sh

models: ## download the two real models that tests and `make bench` use
	@scripts/fetch-models.sh

build: setup ## release build of faultline and bench
	cargo build --release --locked

bench: setup models ## measure load time and memory on the demo model and a real one
	@scripts/bench.sh $(BENCH_ARGS)

bench-big: setup ## a model larger than memory against stock llama.cpp: root, 15 GB of disk, 15 minutes
	@scripts/bench-big.sh $(BENCH_ARGS)

bench-pager: setup ## the pager in four budgets against stock llama.cpp in memory: root, 15 GB of disk, 25 minutes
	@scripts/bench-pager.sh $(BENCH_ARGS)

llama-bench: setup ## build and run the patched llama-bench; LLAMA_BENCH_ARGS="-m MODEL ..."
	@scripts/llama-bench.sh $(LLAMA_BENCH_ARGS)

test: ## every check, including setup and models; STEPS="fmt clippy" runs only these
	@scripts/test.sh $(STEPS)

fmt: ## format the Rust code
	cargo fmt --all

upgrade-llama: ## move the pin of llama.cpp; VERSION=x.y.z of the crate that carries it
	@scripts/upgrade-llama.sh $(VERSION)

clean: ## remove build results; models in the user's cache folder stay
	cargo clean
