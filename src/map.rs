//! `faultline map`: where a model's tensors are.

use std::io::{IsTerminal, stdout};

use analysis::Target;
use analysis::map::{Format, ModelMap};

use crate::cli::{MapArgs, MapFormat};
use crate::exit::{BadInput, Outcome, answered};

pub(crate) fn run(args: &MapArgs) -> anyhow::Result<Outcome> {
    if args.output == MapFormat::Parquet && stdout().is_terminal() {
        let message = "parquet is no text for a terminal: add > map.parquet";
        return Err(BadInput(message.to_owned()).into());
    }
    let mut map = ModelMap::open(&args.model)?;
    if args.extents {
        map.read_extents()?;
    }
    let format = match args.output {
        MapFormat::Text => Format::Text,
        MapFormat::Csv => Format::Csv,
        MapFormat::Parquet => Format::Parquet,
        MapFormat::Json => Format::Json,
    };
    answered(map.write(format, &Target::Stdout))
}
