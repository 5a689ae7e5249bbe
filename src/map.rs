//! `faultline map`: where a model's tensors are.

use analysis::Target;
use analysis::map::{Format, ModelMap};

use crate::cli::{MapArgs, MapFormat};
use crate::exit::{Outcome, answered};

pub(crate) fn run(args: &MapArgs) -> anyhow::Result<Outcome> {
    let mut map = ModelMap::open(&args.model)?;
    if args.extents {
        map.read_extents()?;
    }
    let format = match args.output {
        MapFormat::Text => Format::Text,
        MapFormat::Csv => Format::Csv,
        MapFormat::Json => Format::Json,
    };
    answered(map.write(format, &Target::Stdout))
}
