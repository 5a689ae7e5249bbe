//! `faultline info`: what a log holds.

use analysis::Target;
use analysis::log::{self, Info};

use crate::cli::{InfoArgs, InfoFormat};
use crate::exit::{Outcome, answered};
use crate::export::open;

pub(crate) fn run(args: &InfoArgs) -> anyhow::Result<Outcome> {
    let info = Info::read(&open(&args.log)?)?;
    let format = match args.output {
        InfoFormat::Text => log::InfoFormat::Text,
        InfoFormat::Json => log::InfoFormat::Json,
    };
    answered(info.write(format, &Target::Stdout))
}
