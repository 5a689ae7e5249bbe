//! Prints the memory plan of a model file or of a shape in several budgets.
//!
//! ```text
//! cargo run -p pager --example plan -- gpt-oss-20b 10000MB 7000MB
//! cargo run -p pager --example plan -- model.gguf auto
//! ```

#[path = "../tests/common/mod.rs"]
mod common;

use std::error::Error;
use std::path::Path;

use gguf::ModelFiles;
use model_shapes::Shape;
use pager::{Budget, Demand, MemoryPlan, Pages, Slices};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments
        .next()
        .ok_or("which model? A file, or the name of a shape")?;
    let slices = if model.ends_with(".gguf") {
        Slices::new(&ModelFiles::open(Path::new(&model))?)?
    } else {
        let n_used = match model.as_str() {
            "qwen3-30b-a3b" => 8,
            "deepseek-v2-lite" => 6,
            _ => 4,
        };
        common::slices_of(&Shape::by_name(&model)?, n_used)
    };
    // A context of a few thousand tokens; whoever loads the model asks llama.cpp.
    let demand = Demand {
        kv_bytes: 64 << 20,
        compute_bytes: 128 << 20,
        outputs_bytes: 4 << 20,
        process_bytes: 64 << 20,
        staging_bytes: 8 << 20,
        n_ubatch: 512,
    };
    for budget in arguments {
        let budget_bytes = budget.parse::<Budget>()?.resolve(slices.total_bytes())?;
        match MemoryPlan::new(&slices, budget_bytes, &demand, Pages::default()) {
            Ok(plan) => println!("{plan}"),
            Err(error) => println!("{error}\n"),
        }
    }
    Ok(())
}
