//! Nothing is built from this package; see Cargo.toml.
