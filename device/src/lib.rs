//! How fast a device reads at random, by request size and queue depth.
//!
//! [`DeviceCurve`] is the result of a measurement and answers for sizes and depths between the measured ones. With the
//! feature `measure`, `measure::measure` takes one with io_uring and O_DIRECT.
#![deny(missing_docs)]

mod curve;
#[cfg(feature = "measure")]
pub mod measure;

pub use curve::{CacheCheck, CurveError, DeviceCurve, Fastest, Point, Sequential, Target};
