//! Two threads cannot use one context at the same time.

use llama_rs::Context;

fn shared<T: Sync>(_: &T) {}

fn use_from_two_threads(context: &Context<'_>) {
    shared(context);
}

fn main() {}
