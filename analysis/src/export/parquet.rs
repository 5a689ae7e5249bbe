//! The same columns with types, compressed.

use std::ops::ControlFlow;

use super::accesses::{COLUMNS, row};
use crate::Result;
use crate::columns::ParquetWriter;
use crate::log::{Entry, Log, Weights};
use crate::output::Sink;
use crate::text::hex;

pub(super) fn write(log: &Log, sink: Sink) -> Result<()> {
    let weights = Weights::of(log.reader());
    let mut parquet =
        ParquetWriter::create(sink, "accesses", &COLUMNS, about(log), Some("timestamp"))?;
    log.for_each(&weights, |entry| {
        if let Entry::Access(access) = entry {
            parquet.push(row(&access))?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    parquet.finish()
}

fn about(log: &Log) -> Vec<(String, String)> {
    let header = log.reader().header();
    let mut about = vec![
        (
            "faultline.model_digest".to_owned(),
            hex(&header.model_digest),
        ),
        (
            "faultline.epoch_unix_ns".to_owned(),
            header.epoch_realtime_ns.to_string(),
        ),
        (
            "faultline.lost_records".to_owned(),
            header.n_lost.to_string(),
        ),
    ];
    let files = log.reader().tables().files.iter().enumerate();
    about.extend(files.map(|(index, file)| (format!("faultline.file.{index}"), file.path.clone())));
    about
}
