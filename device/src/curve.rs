//! The curve: measured points, and rates between them.

use serde::{Deserialize, Serialize};

/// The version of the JSON form.
const VERSION: u32 = 1;

/// Why a curve cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CurveError {
    /// Not the JSON form of a curve.
    #[error("not a device curve: {0}; `bench device -o json` writes one")]
    Json(#[from] serde_json::Error),
    /// Another version of the form.
    #[error("a device curve of version {0}; this program reads version {VERSION}")]
    Version(u32),
    /// No points.
    #[error("a device curve without points")]
    Empty,
    /// A point that cannot be.
    #[error(
        "a device curve with an impossible point: {request_bytes} bytes, depth {depth}, {rate} bytes/s"
    )]
    Point {
        /// Bytes of a request.
        request_bytes: u64,
        /// Requests at once.
        depth: u32,
        /// The rate.
        rate: f64,
    },
    /// Two points at the same place.
    #[error("a device curve with two points of {request_bytes} bytes and depth {depth}")]
    Twice {
        /// Bytes of a request.
        request_bytes: u64,
        /// Requests at once.
        depth: u32,
    },
}

/// What was read, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// The file's name without its folders; none for a temporary file.
    pub file: Option<String>,
    /// Its size.
    pub size_bytes: u64,
    /// Such as `ext4`.
    pub file_system: String,
    /// Such as `nvme0n1`; none where the file system is not on one block device.
    pub device: Option<String>,
    /// Whether reads passed the page cache by (O_DIRECT).
    pub direct: bool,
    /// The least that a read's offset and length are multiples of.
    pub block_bytes: u64,
    /// Such as `io_uring, registered buffers, registered file`.
    pub engine: String,
}

/// Random reads of one size at one queue depth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Bytes of a request.
    pub request_bytes: u64,
    /// Requests under way at once.
    pub depth: u32,
    /// Median of the repetitions.
    pub bytes_per_s: f64,
    /// The slowest repetition.
    pub bytes_per_s_min: f64,
    /// The fastest repetition.
    pub bytes_per_s_max: f64,
    /// Median over all requests, from submission to completion.
    pub latency_median_ns: u64,
    /// 99th percentile of the same.
    pub latency_p99_ns: u64,
    /// Requests of all repetitions.
    pub n_requests: u64,
    /// Each repetition, in the order in which they were made.
    pub samples_bytes_per_s: Vec<f64>,
}

/// Large reads in the file's order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sequential {
    /// The first reading of the file from front to back, which makes ranges equally warm for the points; none if it was
    /// left out.
    pub once_bytes_per_s: Option<f64>,
    /// Repetitions between those of the points.
    pub point: Point,
}

/// Ranges that were read twice in a row, to see whether something behind the device remembers them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheCheck {
    /// Bytes of each range.
    pub range_bytes: u64,
    /// The first time, a range each.
    pub first_bytes_per_s: Vec<f64>,
    /// The second time.
    pub again_bytes_per_s: Vec<f64>,
    /// Median of the ratios again / first.
    pub ratio: f64,
    /// Whether the ratio shows a cache: then rates of ranges that were read before are not the device's.
    pub seen: bool,
}

/// Rates of random reads by request size and queue depth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceCurve {
    /// Version of this form.
    pub version: u32,
    /// What was read.
    pub target: Target,
    /// Ordered by size, then by depth; never empty.
    pub points: Vec<Point>,
    /// Reads in order.
    pub sequential: Option<Sequential>,
    /// Whether something behind the device remembers what was read.
    pub host_cache: Option<CacheCheck>,
    /// Why the figures may not be the device's, and what was left out.
    pub notes: Vec<String>,
}

/// The fastest way to read, from [`DeviceCurve::fastest`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Fastest {
    /// The rate.
    pub bytes_per_s: f64,
    /// Bytes of a request.
    pub request_bytes: u64,
    /// Requests under way at once.
    pub depth: u32,
}

impl DeviceCurve {
    /// A curve of these points, in any order.
    ///
    /// # Errors
    ///
    /// Those of [`CurveError`] that are about points.
    pub fn new(target: Target, points: Vec<Point>) -> Result<DeviceCurve, CurveError> {
        DeviceCurve {
            version: VERSION,
            target,
            points,
            sequential: None,
            host_cache: None,
            notes: Vec::new(),
        }
        .checked()
    }

    /// Reads the JSON form.
    ///
    /// # Errors
    ///
    /// Those of [`CurveError`].
    pub fn from_json(text: &str) -> Result<DeviceCurve, CurveError> {
        /// Read first: another version may have other fields.
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        match serde_json::from_str::<Head>(text)?.version {
            VERSION => serde_json::from_str::<DeviceCurve>(text)?.checked(),
            other => Err(CurveError::Version(other)),
        }
    }

    fn checked(mut self) -> Result<DeviceCurve, CurveError> {
        if self.points.is_empty() {
            return Err(CurveError::Empty);
        }
        for point in &self.points {
            let possible = point.bytes_per_s.is_finite() && point.bytes_per_s > 0.0;
            if point.request_bytes == 0 || point.depth == 0 || !possible {
                return Err(CurveError::Point {
                    request_bytes: point.request_bytes,
                    depth: point.depth,
                    rate: point.bytes_per_s,
                });
            }
        }
        let place = |point: &Point| (point.request_bytes, point.depth);
        self.points.sort_by_key(place);
        match self
            .points
            .windows(2)
            .find(|pair| place(&pair[0]) == place(&pair[1]))
        {
            Some(pair) => Err(CurveError::Twice {
                request_bytes: pair[0].request_bytes,
                depth: pair[0].depth,
            }),
            None => Ok(self),
        }
    }

    /// The rate of requests of this size with this many under way, in bytes per second.
    ///
    /// Between measured points the logarithm of the rate is linear in those of size and depth, so the rate lies
    /// between theirs. Below the smallest size or depth it falls in proportion (the time of a request stays), above the
    /// largest it stays. 0 counts as 1.
    pub fn rate_bytes_per_s(&self, request_bytes: u64, depth: u32) -> f64 {
        let by_size: Vec<(f64, f64)> = self
            .points
            .chunk_by(|left, right| left.request_bytes == right.request_bytes)
            .map(|points| {
                let by_depth: Vec<(f64, f64)> = points
                    .iter()
                    .map(|point| (f64::from(point.depth), point.bytes_per_s))
                    .collect();
                let rate = interpolate(&by_depth, f64::from(depth.max(1)));
                (points[0].request_bytes as f64, rate)
            })
            .collect();
        interpolate(&by_size, request_bytes.max(1) as f64)
    }

    /// The fastest of all depths and of all sizes up to this one: what no reader of pieces of this size can exceed, even
    /// one that divides them.
    pub fn fastest(&self, request_bytes_max: u64) -> Fastest {
        let measured = self
            .points
            .iter()
            .filter(|point| point.request_bytes <= request_bytes_max)
            .map(|point| Fastest {
                bytes_per_s: point.bytes_per_s,
                request_bytes: point.request_bytes,
                depth: point.depth,
            });
        let between = self.points.iter().map(|point| Fastest {
            bytes_per_s: self.rate_bytes_per_s(request_bytes_max, point.depth),
            request_bytes: request_bytes_max,
            depth: point.depth,
        });
        measured
            .chain(between)
            .max_by(|left, right| left.bytes_per_s.total_cmp(&right.bytes_per_s))
            .expect("a curve has points")
    }
}

/// `y` at `x` of points with ascending, positive `x` and positive `y`; there is at least one.
fn interpolate(points: &[(f64, f64)], x: f64) -> f64 {
    let above = points.partition_point(|point| point.0 < x);
    match (
        above.checked_sub(1).map(|below| points[below]),
        points.get(above),
    ) {
        (None, Some((first, rate))) => rate * x / first,
        (Some((_, rate)), None) => rate,
        (Some((left, low)), Some(&(right, high))) => {
            let share = (x / left).ln() / (right / left).ln();
            low * (high / low).powf(share)
        }
        (None, None) => unreachable!("there is at least one point"),
    }
}
