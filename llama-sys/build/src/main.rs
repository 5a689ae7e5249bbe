//! `llama-build`: trees, tools and reference programs from the command line.

fn main() {
    eprintln!("llama-build: no command is given");
    std::process::exit(2);
}
