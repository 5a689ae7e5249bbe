//! `faultline diff`: two logs or reports side by side.

use analysis::Target;
use analysis::report::{Diff, open_report};

use crate::cli::DiffArgs;
use crate::exit::{Outcome, answered};
use crate::report::form;

pub(crate) fn run(args: &DiffArgs) -> anyhow::Result<Outcome> {
    let (a, b) = (open_report(&args.a)?, open_report(&args.b)?);
    answered(Diff::of(&a, &b).write(form(args.output), &Target::Stdout))
}
