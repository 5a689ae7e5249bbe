//! `faultline dump`: the records of a log as lines.

use analysis::Target;
use analysis::log::Dump;

use crate::cli::DumpArgs;
use crate::exit::{Outcome, answered};
use crate::export::open;

pub(crate) fn run(args: &DumpArgs) -> anyhow::Result<Outcome> {
    let dump = Dump {
        step: args.step,
        tensor: args.tensor.clone(),
        limit: args.limit,
    };
    answered(dump.write(&open(&args.log)?, &Target::Stdout))
}
