//! Compiles the receiver of ggml's assertions.

fn main() {
    println!("cargo::rerun-if-changed=native/assertions.cpp");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file("native/assertions.cpp")
        .compile("llama_rs_assertions");
}
