# One entry for people and CI alike. `verify` never writes to the tree, `fix` may.

.PHONY: demo test verify fix setup long bench clean

# The main job, shown: a database loses its primary's host, another takes over, no row is lost.
DEMO_BUILD ?= cargo build --locked --bin regent
demo:
	scripts/need-rust
	scripts/need-postgres
	scripts/need-haproxy
	$(DEMO_BUILD)
	target/debug/regent demo

# Everything a newcomer should see green: unit, property, crash-state, end-to-end, simulation.
test: setup
	scripts/test

# What CI runs: formatting, lints, licences, docs, then all of `test`.
verify: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	scripts/deny
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
	scripts/test

# Formats, and rewrites what tests compare against (core scripts, CLI reference).
fix:
	scripts/need-rust
	cargo fmt --all
	UPDATE=1 cargo test --locked -p regent-core --lib -q state::tests::script
	UPDATE=1 cargo test --locked --test it -q the_reference_of_verbs

# Installs what the tests need beyond cargo; says the one command when it lacks the right to.
setup:
	scripts/setup

# The runs that take too long for every change: hundreds of kills, thousands of seeds.
long: setup
	scripts/long

# The rows of docs/performance.md, measured on this machine.
bench:
	scripts/bench

clean:
	cargo clean
